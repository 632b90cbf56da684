"""The folder of one run: the name of every file in it, and what made it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cggm.errors import UserError
from cggm.runs.environment import environment
from cggm.runs.storage import (
    LOCK,
    check_free,
    is_draft,
    read_json,
    read_yaml,
    sweep_drafts,
    write_json,
)

_KEYS_OF_EARLIER_RUNS = {
    "slices": "brats",
    "fold": "iemocap",
    "store": "mosi",
    "views": "mfeat",
    "seeds": "food101",  # which had none of its own
}


@dataclass(frozen=True)
class RunFolder:
    """Everything that one run leaves behind.

    Use :meth:`create` for a new run and :meth:`open` for an old one.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path | None, *, name: str) -> "RunFolder":
        """Make the folder of a new run; :meth:`plan` and :meth:`make` in one."""
        run = cls.plan(path, name=name)
        run.make()
        return run

    @classmethod
    def plan(cls, path: Path | None, *, name: str) -> "RunFolder":
        """Choose the folder of a new run, without making it yet.

        Args:
            path: The folder, absent, empty or left by a start that was killed;
                ``runs/<name>-<date>-<time>`` where ``None``.
            name: What runs, such as the data set.

        Raises:
            UserError: If the folder holds something, is held by another process, or cannot be read.
        """
        run = cls(path or _unused(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
        check_free(run.path)
        try:
            occupied = run.path.exists() and any(map(_is_content, run.path.iterdir()))
        except OSError as error:
            raise _unmakable(run.path, error) from error
        if occupied:
            raise UserError(
                f"{run.path}: expected a new or empty run folder, but it holds files.",
                f"Continue that run with --resume {run.path}, or give another --output.",
            )
        return run

    def make(self) -> None:
        """Make the planned folder, with an empty one for the checkpoints.

        Raises:
            UserError: If it cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unmakable(self.path, error) from error

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Find an existing run, or a group of runs, to resume it or to predict with it.

        Args:
            path: The folder.

        Raises:
            UserError: If that is no run folder.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder.", "Give the folder of a run.")
        missing = [part.name for part in (run.config, run.checkpoints) if not part.exists()]
        # A group has no checkpoints of its own, and one that was killed at once no runs yet.
        if run.config.name in missing:
            raise UserError(
                f"{path}: expected a run folder, but it has no {' and no '.join(missing)}.",
                "Give the folder that a training command printed as its output.",
            )
        return run

    def members(self) -> "list[RunFolder]":
        """The runs of a group, such as its folds, by their numbers; the run itself if it is one.

        Raises:
            UserError: If one of them is no run folder.
        """
        parts = [file.parent for file in self.path.glob("*/config.yaml")]
        # fold-10 comes after fold-9
        parts.sort(key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name))
        return [RunFolder.open(part) for part in parts] or [self]

    def is_new(self) -> bool:
        """Whether nothing was logged or saved there yet."""
        logs = (self.metrics, self.balance, self.tensorboard)
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return not saved and not any(path.exists() for path in logs)

    def task(self) -> str:
        """What was trained, such as ``brats``, as the configuration says.

        Raises:
            UserError: If there is no configuration, or it names no task and is of no known form.
        """
        config = read_yaml(self.config)
        keys = config if isinstance(config, dict) else {}
        # Runs of early versions named no task; each had a key that no other one had.
        earlier = (task for key, task in _KEYS_OF_EARLIER_RUNS.items() if key in keys)
        task = keys.get("task") or next(earlier, None)
        if not isinstance(task, str):
            raise UserError(
                f"{self.config}: expected a line `task: NAME`, but there is none.",
                "Add it: the name of the script that trained, without _train.py.",
            )
        return task

    def sweep(self) -> None:
        """Remove what a killed process left half-written; of no use while another one runs."""
        for folder in (self.path, self.curves, self.checkpoints):
            sweep_drafts(folder)

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Machine, versions and command line, JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Losses and scores, one JSON object per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def metric_records(self) -> Path:
        """How metrics are called and which of their values are better, JSON."""
        return self.path / "metric_records.json"

    @property
    def balance(self) -> Path:
        """What the balancer saw and did, one JSON object per recorded iteration."""
        return self.path / "balance.jsonl"

    @property
    def gradients(self) -> Path:
        """Last-layer gradients of some batches, see :mod:`cggm.runs.gradients`."""
        return self.path / "gradients.npz"

    @property
    def results(self) -> Path:
        """What a finished run came to, JSON."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """What a person looks at, HTML."""
        return self.path / "report.html"

    @property
    def split(self) -> Path:
        """Cases of training and validation, JSON; of a segmentation."""
        return self.path / "split.json"

    @property
    def subsets(self) -> Path:
        """Scores of the validation cases for subsets of modalities, JSON; of a segmentation."""
        return self.path / "subsets.json"

    @property
    def validation(self) -> Path:
        """Scores of each validation case, JSON; of a segmentation."""
        return self.path / "validation.json"

    @property
    def predictions(self) -> Path:
        """Predictions of the test split, a NumPy archive; of a training on sequences."""
        return self.path / "predictions.npz"

    @property
    def summary(self) -> Path:
        """What several runs of a group came to, JSON."""
        return self.path / "summary.json"

    @property
    def timing(self) -> Path:
        """Seconds of training and of waiting for data, one JSON object per part of the run."""
        return self.path / "timing.jsonl"

    @property
    def mlflow(self) -> Path:
        """Where MLflow keeps this run, JSON."""
        return self.path / "mlflow.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        """Folder of the plotted curves."""
        return self.path / "curves"

    def write_environment(
        self, *, resumed_at: int = 0, changed: Mapping[str, tuple[object, object]] | None = None
    ) -> None:
        """Record machine, versions and command line; earlier starts of the run are kept.

        Args:
            resumed_at: Iterations that the run had behind it.
            changed: Options that it was given anew, to their earlier and their present values.
        """
        record = environment()
        if resumed_at:
            record |= {"resumed_at": resumed_at, "changed": dict(changed or {})}
        if self.environment.exists():
            earlier = read_json(self.environment)
            record["earlier_starts"] = [*earlier.pop("earlier_starts", []), earlier]
        write_json(self.environment, record)


def _is_content(path: Path) -> bool:
    """Whether a file or folder is more than what a start leaves that was killed at once."""
    if path.name == "checkpoints" and path.is_dir():
        return any(path.iterdir())
    return path.name != LOCK and not is_draft(path)


def _unmakable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: the run folder cannot be made ({error.strerror}).",
        "Give another one with --output.",
    )


def _unused(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 1000))
    return next(p for p in (path, *numbered) if not p.exists())
