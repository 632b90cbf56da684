"""The runs that a comparison needs: methods times seeds on each task."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cggm.errors import UserError
from cggm.runs.folder import write_atomically

UNIMODAL = "unimodal"
SWEEP = (
    *(f"cggm:rho={rho}" for rho in (0.5, 0.75, 1.5, 2.0)),
    *(f"cggm:lam={lam}" for lam in (0.025, 0.05, 0.2, 0.4)),
)
_WITH_GRADIENTS = ("joint", "cggm")
_BATCHES = 30


@dataclass(frozen=True)
class Task:
    """A training script and what it reports.

    Args:
        script: File name in ``pipelines``.
        modalities: What it trains on.
        metrics: Those that tables show, the most important one first.
    """

    script: str
    modalities: tuple[str, ...]
    metrics: tuple[str, ...]


TASKS = {
    "brats": Task(
        "brats_train.py",
        ("flair", "t1ce", "t1", "t2"),
        ("dice_mean", "dice_WT", "dice_TC", "dice_ET"),
    ),
    "mosi": Task(
        "mosi_train.py",
        ("text", "audio", "vision"),
        ("mae", "corr", "acc2_non0", "f1w_non0", "acc7"),
    ),
    "iemocap": Task("iemocap_train.py", ("text", "audio", "vision"), ("acc", "f1_macro", "uar")),
    "food101": Task("food101_train.py", ("text", "image"), ("acc", "f1_macro")),
    "mfeat": Task("mfeat_train.py", ("pix", "fou", "mor"), ("acc", "f1_macro")),
}


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Args:
        task: A name in ``TASKS``.
        method: Its name in tables: that of its configuration, ``cggm:rho=0.5`` for one with other
            settings, ``unimodal_text`` for one modality alone.
        seed: Of everything random.
        arguments: What the script is told besides the seed and the output.
    """

    task: str
    method: str
    seed: int
    arguments: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return (self.task, self.method, self.seed)

    def folder(self, output: Path) -> Path:
        """Where it writes to."""
        return output / "runs" / self.task / self.method.replace(":", "-") / f"seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Args:
        tasks: Names in ``TASKS``.
        methods: Names of ``configs/methods``, with settings where others than those of the file are
            meant (``cggm:rho=0.5:lam=0.2``), or ``unimodal``, which is every modality alone.
        seeds: Of the runs.
        arguments: What every training script is told besides, such as ``--max_epochs 5``.
        sweep: Whether CGGM is trained with other values of rho and lambda, too (figure 5).
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    arguments: tuple[str, ...] = ()
    sweep: bool = False

    def runs(self, methods: Path) -> list[Run]:
        """All runs, seed by seed, so that an interrupted comparison is balanced.

        Args:
            methods: Folder of the methods' configurations.

        Raises:
            UserError: If a task, a method or a setting is unknown.
        """
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise UserError(f"Unknown task {unknown[0]!r}.", f"Available: {', '.join(TASKS)}.")
        names = [*self.methods, *(SWEEP if self.sweep else ())]
        chosen = [one for name in dict.fromkeys(names) for one in _expand(name, methods)]
        return [
            Run(task, method, seed, (*self.arguments, *arguments))
            for seed in self.seeds
            for task in self.tasks
            for method, arguments in _for_task(task, chosen)
        ]

    def keep(self, output: Path) -> None:
        """Note in a folder what its trainings are told; methods, seeds and tasks may grow.

        Raises:
            UserError: If the folder belongs to a comparison whose trainings were told otherwise.
        """
        file = output / "comparison.json"
        if file.exists():
            told = json.loads(file.read_text("utf-8"))["arguments"]
            if told != list(self.arguments):
                before, now = (" ".join(told) or "nothing"), (" ".join(self.arguments) or "nothing")
                raise UserError(
                    f"{output}: a comparison whose trainings were told {before}, not {now}.",
                    "Give the same options, or another --output.",
                )
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(asdict(self), indent=2) + "\n").encode())


def command(run: Run, pipelines: Path, output: Path, *, resume: bool) -> list[str]:
    """The command line of a run.

    Args:
        run: The run.
        pipelines: Folder of the scripts.
        output: Folder of the comparison.
        resume: Whether it was interrupted before.
    """
    script = [sys.executable, str(pipelines / TASKS[run.task].script)]
    folder = str(run.folder(output))
    if resume:
        return [*script, "--resume", folder]
    return [*script, "--output", folder, "--seed", str(run.seed), *run.arguments]


def _expand(method: str, folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Names and arguments that one name of the command line stands for."""
    if method == UNIMODAL:
        return [(UNIMODAL, ("--method", "plain"))]
    name, *settings = method.split(":")
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join([UNIMODAL, *sorted(path.stem for path in folder.glob("*.yaml"))])
        raise UserError(f"Unknown method {name!r}.", f"Available: {known}.")
    arguments = ["--method", name]
    if settings:
        merged = {**_settings(file), **dict(map(_setting, settings))}
        arguments += ["--balancer.settings", json.dumps(merged)]
    if name in _WITH_GRADIENTS and not settings:
        arguments += ["--gradients", str(_BATCHES)]
    return [(method, tuple(arguments))]


def _for_task(
    task: str, chosen: Sequence[tuple[str, tuple[str, ...]]]
) -> list[tuple[str, tuple[str, ...]]]:
    rows = []
    for method, arguments in chosen:
        if method != UNIMODAL:
            rows.append((method, arguments))
            continue
        for modality in TASKS[task].modalities:
            alone = ("--modalities", json.dumps([modality]))
            rows.append((f"{UNIMODAL}_{modality}", (*arguments, *alone)))
    return rows


def _settings(file: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.safe_load(file.read_text("utf-8"))["balancer"]
    settings: Mapping[str, Any] = content.get("settings") or {}
    return settings


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"Expected a setting as in cggm:rho=0.5, but got {text!r}.", "Correct it.")
    return name, yaml.safe_load(value)
