"""What a run folder holds, read once for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm.runs import RunFolder, learn_metrics, read_json, read_jsonl, read_yaml

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it, finished or not.

    Args:
        folder: Where they lie.
        config: The configuration.
        environment: Machine, versions and command line.
        metrics: One object per epoch.
        balance: One object per recorded iteration.
        timing: Seconds of training, one object per checkpoint; those of all starts add up.
        results: What the run came to; empty while it is not finished.
        progress: Of the last checkpoint; empty without one.
    """

    folder: RunFolder
    config: Json
    environment: Json
    metrics: Sequence[Json]
    balance: Sequence[Json]
    timing: Sequence[Json]
    results: Json
    progress: Json

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a run folder; metrics that its training registered are known afterwards.

        Args:
            path: The folder.

        Raises:
            UserError: If that is no run folder, or a log is damaged.
        """
        run = RunFolder.open(path)
        learn_metrics(run.metric_records)
        files = (run.metrics, run.balance, run.timing)
        metrics, balance, timing = (read_jsonl(p) if p.exists() else [] for p in files)
        return cls(
            folder=run,
            config=read_yaml(run.config),
            environment=read_json(run.environment, missing_ok=True),
            metrics=metrics,
            balance=balance,
            timing=timing,
            results=read_json(run.results, missing_ok=True),
            progress=_progress(run),
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.path.resolve().name

    @property
    def method(self) -> str:
        """The balancing method with its settings."""
        balancer = self.config["balancer"]
        settings = ", ".join(f"{key}={value}" for key, value in balancer["settings"].items())
        return f"{balancer['name']}({settings})"

    @property
    def validated(self) -> list[Json]:
        """The epochs that end in a validation."""
        return [row for row in self.metrics if any(key.startswith("val_") for key in row)]

    @property
    def validation_metrics(self) -> list[str]:
        """Names of what is validated, without ``val_``, in their order."""
        keys = dict.fromkeys(key for row in self.metrics for key in row if key.startswith("val_"))
        return [key.removeprefix("val_") for key in keys]


def _progress(run: RunFolder) -> Json:
    headers = sorted(run.checkpoints.glob("*/checkpoint.json"))
    return read_json(headers[-1]).get("progress", {}) if headers else {}
