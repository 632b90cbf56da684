"""Options of a comparison, and the runs that it needs: methods times seeds on each task."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cggm.errors import UserError
from cggm.reports import Task
from cggm.runs import DEVICES, check_form, read_json, read_yaml, require, write_json

UNIMODAL = "unimodal"
SWEPT_RHO = (0.5, 0.75, 1.0, 1.5, 2.0)
SWEPT_LAM = (0.025, 0.05, 0.2, 0.4)
SWEEP = (
    *(f"cggm:rho={rho}" for rho in SWEPT_RHO),
    *(f"cggm:lam={lam}" for lam in SWEPT_LAM),
)
_WITH_GRADIENTS = ("joint", "cggm")
_BATCHES = 30
_ALWAYS = ("--curves", "false", "--report", "false")
PROTOCOLS = ("complete", "missing")
_UNIFORM = {"subsets": "uniform", "per": "sample"}


METHODS = (
    "unimodal,plain,joint,unimodal_losses,mrd,mslr_dynamic,gblending,ogm,ogm_ge,agm,pmr,umt,"
    "joint_late,ume,qmf,reconboost,mmpareto,opm,constant,random,cggm_magnitude,cggm_direction,cggm"
)
MISSING = "joint,mrd_uniform,unimodal_losses,passion,redcore,cggm"


@dataclass(frozen=True)
class JobOptions:
    """What each job of a cluster gets; what is left out is the cluster's default.

    Args:
        partition: SLURM's partition.
        minutes: Time limit of a job; a training that takes longer saves, waits in the queue again
            and goes on.
        cpus: Processor cores of a job, and its threads.
        gpus: GPUs of a job.
        memory: Memory of a job, in GB.
        constraint: Features that a node must have.
        notice: Seconds before the time limit at which a training is told to save.
    """

    partition: str | None = field(default=None, metadata={"metavar": "NAME"})
    minutes: int = field(default=240, metadata={"metavar": "N"})
    cpus: int = field(default=1, metadata={"metavar": "N"})
    gpus: int = field(default=0, metadata={"metavar": "N"})
    memory: float | None = field(default=None, metadata={"metavar": "GB"})
    constraint: str | None = field(default=None, metadata={"metavar": "NAME"})
    notice: int = field(default=90, metadata={"metavar": "N"})

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "notice"):
            value = getattr(self, name)
            require(value >= 1, f"cluster.{name}", "of at least 1", value)
        require(self.gpus >= 0, "cluster.gpus", "of at least 0", self.gpus)
        memory = self.memory
        require(memory is None or memory > 0, "cluster.memory", "greater than 0", memory)

    @property
    def parameters(self) -> dict[str, Any]:
        """For submitit's executor."""
        chosen = {
            "slurm_partition": self.partition,
            "slurm_constraint": self.constraint,
            "mem_gb": self.memory,
            "gpus_per_node": self.gpus or None,
        }
        return {
            "name": "cggm",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "slurm_signal_delay_s": self.notice,
            **{name: value for name, value in chosen.items() if value is not None},
        }


@dataclass(frozen=True)
class CompareOptions:
    """Compare balancing methods.

    Args:
        task: A task of the table: brats, mosi, iemocap, food101, mfeat, htad or arrays; or
            module:name of a cggm.reports.Task of your own; several separated by commas.
        output: Folder of the comparison.
        methods: Names of configs/methods, separated by commas; with settings as cggm:rho=0.5, and
            unimodal for every modality alone. A selection that suits the protocol where not given.
        seeds: Trainings of each method, with consecutive seeds from 0 on.
        quick: Whether tasks have the small size that the table gives.
        protocol: complete, or missing: methods that take modalities from samples (mrd, passion,
            redcore) keep one of all subsets for each, drawn anew, and all subsets are evaluated.
        sweep: What to tune first, for every method alike, as in
            optimizer.lr=1e-4..1e-2:log,batch_size=32|64,cggm:rho=0.5..2; without a value, CGGM is
            trained with other values of rho and lambda, too (figure 5).
        trials: Of each method, the first with its own settings.
        sweep_engine: random, the same draws for all methods, or optuna.
        jobs: Trainings side by side; one after another here, all at once on a cluster, where not
            given.
        launcher: local, or slurm: each training is a job of an array, and the next command gathers
            what ended meanwhile; submitit-debug tries that without a cluster.
        cluster: What each job gets.
        data: Folder of the data; the demo data where not given.
        config: Configuration laid over the defaults of every training.
        max_epochs: Passes over the training data; those of the configuration where not given.
        device: Where to compute; CUDA if there is one, where not given.
        figures: Format of the figures besides PNG.
        tasks: Table in which a task of your own may stand, in place of configs/tasks.yaml.
    """

    task: str = field(metadata={"metavar": "NAME"})
    output: Path = field(metadata={"metavar": "DIR"})
    methods: str | None = field(default=None, metadata={"metavar": "A,B"})
    seeds: int = field(default=5, metadata={"metavar": "N"})
    quick: bool = False
    protocol: str = field(default="complete", metadata={"metavar": "complete|missing"})
    sweep: bool | str = field(default=False, metadata={"metavar": "KEY=VALUES"})
    trials: int = field(default=10, metadata={"metavar": "N"})
    sweep_engine: Literal["random", "optuna"] = "random"
    jobs: int | None = field(default=None, metadata={"metavar": "N"})
    launcher: Literal["local", "slurm", "submitit-debug"] = "local"
    cluster: JobOptions = field(default_factory=JobOptions)
    data: Path | None = field(default=None, metadata={"metavar": "DIR"})
    config: Path | None = field(default=None, metadata={"metavar": "YAML"})
    max_epochs: int | None = field(default=None, metadata={"metavar": "N"})
    device: str | None = field(default=None, metadata={"metavar": DEVICES})
    figures: Literal["png", "pdf", "svg"] = "png"
    tasks: Path | None = field(default=None, metadata={"metavar": "YAML"})

    def __post_init__(self) -> None:
        for name in ("seeds", "trials"):
            require(getattr(self, name) >= 1, name, "of at least 1", getattr(self, name))
        require(self.jobs is None or self.jobs >= 1, "jobs", "of at least 1", self.jobs)
        free = not (self.quick and self.config)
        require(free, "config", "to be left out with --quick", self.config)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What every training is told."""
        names = ("data", "config", "max_epochs", "device")
        given = {name: getattr(self, name) for name in names}
        return tuple(t for n, v in given.items() if v is not None for t in (f"--{n}", str(v)))

    @property
    def tuned(self) -> tuple[str, ...]:
        """How methods are tuned, which trainings of one folder share."""
        if not isinstance(self.sweep, str):
            return ()
        engine = ("--sweep_engine", self.sweep_engine)
        return ("--sweep", self.sweep, "--trials", str(self.trials), *engine)

    def plan(self, tasks: Sequence[Task]) -> "Plan":
        """What is trained on tasks of the table."""
        usual = MISSING if self.protocol == "missing" else METHODS
        return Plan(
            (*tasks,),
            (*(self.methods or usual).split(","),),
            (*range(self.seeds),),
            self.arguments,
            quick=self.quick,
            sweep=self.sweep is True,
            protocol=self.protocol,
            tuned=self.tuned,
        )


@dataclass(frozen=True)
class PlannedRun:
    """One training of a comparison.

    Args:
        task: What is trained.
        method: Its name in tables: that of its configuration, ``cggm:rho=0.5`` for one with other
            settings, ``unimodal_text`` for one modality alone.
        seed: Of everything random.
        arguments: What the script is told besides the seed and the output.
    """

    task: Task
    method: str
    seed: int
    arguments: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return (self.task.name, self.method, self.seed)

    def folder(self, output: Path) -> Path:
        """Where it writes to."""
        return (
            output / "runs" / self.task.name / self.method.replace(":", "-") / f"seed-{self.seed}"
        )

    def log(self, output: Path) -> Path:
        """What it prints, beside its folder."""
        folder = self.folder(output)
        return folder.with_name(f"{folder.name}.log")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Args:
        tasks: What is trained, each once.
        methods: Names of ``configs/methods``, with settings where others than those of the file are
            meant (``cggm:rho=0.5:lam=0.2``), or ``unimodal``, which is every modality alone.
        seeds: Of the runs.
        arguments: What every training script is told besides, such as ``--max_epochs 5``.
        quick: Whether tasks have their small size.
        sweep: Whether CGGM is trained with other values of rho and lambda, too (figure 5), and with
            it what these are compared with.
        protocol: ``"complete"``, or ``"missing"``: methods that take modalities from samples keep
            one of all subsets for each, drawn anew, and all subsets are evaluated.
        tuned: How methods are tuned first, in the words of the command line.
    """

    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    arguments: tuple[str, ...] = ()
    quick: bool = False
    sweep: bool = False
    protocol: str = "complete"
    tuned: tuple[str, ...] = ()

    def runs(self, configs: Path) -> list[PlannedRun]:
        """All runs, seed by seed, so that an interrupted comparison is balanced.

        Args:
            configs: Folder of the configurations.

        Raises:
            UserError: If a method or a setting is unknown, a method or a task is named twice, or
                a task has no small size.
        """
        tasks = [task.name for task in self.tasks]
        require(len({*tasks}) == len(tasks), "task", "to name each once", ", ".join(tasks))
        once = len(set(self.methods)) == len(self.methods)
        require(once, "methods", "to name each once", ", ".join(self.methods))
        names = (*self.methods, *(("joint", "cggm", *SWEEP) if self.sweep else ()))
        require(self.protocol in PROTOCOLS, "protocol", f"of {PROTOCOLS}", self.protocol)
        drawn = _UNIFORM if self.protocol == "missing" else {}
        complete = not _allows_absence(self.arguments)
        told = {name: _arguments(name, configs / "methods", drawn, complete) for name in names}
        always = (*_ALWAYS, *(("--subsets", "true") if drawn else ()))
        sizes = {task.name: _small(task) if self.quick else () for task in self.tasks}
        return [
            PlannedRun(task, method, seed, (*always, *sizes[task.name], *self.arguments, *own))
            for seed in self.seeds
            for task in self.tasks
            for name in told
            for method, own in _on_task(task, name, told[name])
        ]

    def keep(self, output: Path) -> None:
        """Note in a folder what its trainings are told; methods, seeds and tasks may grow.

        Args:
            output: Folder of the comparison, made where absent.

        Raises:
            UserError: If it holds something else, or trainings that were told otherwise.
        """
        file = output / "comparison.json"
        if file.exists():
            _require_same(_told(file), self._noted, output)
            return
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(
                f"{output}: expected a new or empty folder, or one of a comparison, but it holds "
                "other files.",
                "Give another --output.",
            )
        write_json(file, {"arguments": self._noted})

    @property
    def _noted(self) -> list[str]:
        chosen = ["--quick"] if self.quick else []
        chosen += ["--protocol", self.protocol] if self.protocol != "complete" else []
        return [*chosen, *self.tuned, *self.arguments]


_CODE = "--balancer.name"


def command_line(run: PlannedRun, output: Path, *, resume: bool) -> list[str]:
    """What the script of a run is told.

    Args:
        run: The run.
        output: Folder of the comparison.
        resume: Whether it was interrupted before.
    """
    folder = str(run.folder(output))
    if resume:
        told = ["--resume", folder]
        if _CODE in run.arguments:  # a resumed run imports nothing that it is not told to
            told += [_CODE, run.arguments[run.arguments.index(_CODE) + 1]]
        return told
    return ["--output", folder, "--seed", str(run.seed), *run.arguments]


def _allows_absence(arguments: Sequence[str]) -> bool:
    """Whether the configuration of all trainings takes samples that lack a modality."""
    if "--config" not in arguments:
        return False
    file = Path(arguments[arguments.index("--config") + 1])
    content = read_yaml(file) if file.suffix == ".yaml" else {}
    return isinstance(content, dict) and content.get("missing", "refuse") != "refuse"


def _arguments(
    method: str, folder: Path, drawn: Mapping[str, str], complete: bool
) -> tuple[str, ...]:
    """What a training script is told of a method, and of those settings of ``drawn`` it knows.

    Gradients of heads are kept where all samples are complete.
    """
    if method == UNIMODAL:
        return ("--method", "plain")
    name, *settings = method.split(":")
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    unknown = [part for part in name.split("+") if part not in files]
    if unknown:
        available = ", ".join([UNIMODAL, *files])
        raise UserError(f"Unknown method {unknown[0]!r}.", f"Available: {available}.")
    if "+" in name:
        if settings:
            raise UserError(f"{method}: a chain has no settings here.", "Write a file of its own.")
        return ("--method", name)
    balancer = read_yaml(files[name])["balancer"]
    known = balancer["settings"]
    code = (_CODE, balancer["name"]) if "." in balancer["name"] else ()
    kept = complete and not settings and name in _WITH_GRADIENTS
    gradients = ("--gradients", str(_BATCHES)) if kept else ()
    given = {text.partition("=")[0] for text in settings}
    if "subsets" in known:
        settings += [f"{key}={value}" for key, value in drawn.items() if key not in given]
    told = (_setting(text, name, known) for text in settings)
    return ("--method", name, *code, *told, *gradients)


def _setting(text: str, method: str, known: Collection[str]) -> str:
    found = re.fullmatch(r"(\w+)=([\w.+-]+)", text)
    if found is None:
        raise UserError(
            f"Expected a setting as in cggm:rho=0.5, but got {text!r}.", "Correct --methods."
        )
    if found[1] not in known:
        available = ", ".join(known) or "none"
        raise UserError(f"Unknown setting {found[1]!r} of {method}.", f"Available: {available}.")
    return f"--balancer.settings.{text}"


def _small(task: Task) -> tuple[str, ...]:
    if task.quick is None:
        raise UserError(f"Task {task.name} has no small size.", "Leave out --quick.")
    return ("--config", str(task.quick))


def _on_task(
    task: Task, method: str, arguments: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...]]]:
    """Names in tables, and arguments, of what a method means on a task."""
    if method != UNIMODAL:
        return [(method, arguments)]
    return [
        (f"{UNIMODAL}_{modality}", (*arguments, "--modalities", json.dumps([modality])))
        for modality in task.modalities
    ]


def _told(file: Path) -> list[str]:
    note = read_json(file)
    check_form(note, {"arguments": [str], "*": object}, file)
    told: list[str] = note["arguments"]
    return told


def _require_same(before: list[str], now: list[str], output: Path) -> None:
    if before != now:
        first, then = (" ".join(told) or "nothing" for told in (before, now))
        raise UserError(
            f"{output}: a comparison whose trainings were told {first}, not {then}.",
            "Give the same options, or another --output.",
        )
