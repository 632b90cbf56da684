"""What a run folder holds, read once for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm.runs import (
    NUMBER,
    RunFolder,
    check_form,
    describe_method,
    learn_metrics,
    read_json,
    read_jsonl,
    read_yaml,
)

Json = Mapping[str, Any]

_CONFIG = {
    "seed?": int,
    "data?": (str, None),
    "balancer?": {"name": str, "settings": {"*": object}, "*": object},
    "*": object,
}
_EPOCH = {
    **dict.fromkeys(("epoch?", "iteration?", "lr?", "train_loss?", "skipped_steps?"), NUMBER),
    "val_*": NUMBER,
    "warnings?": [str],
    "*": object,
}
_READING = (None, {"*": NUMBER})
_STEP = {
    **dict.fromkeys(("iteration?", "loss?"), NUMBER),
    **dict.fromkeys(("score?", "raw_term?", "term?", "gate?", "lead?", "weight?"), _READING),
    **dict.fromkeys(("cosine?", "gradient_norm?"), _READING),
    "*": object,
}
_TIMING = {"seconds": float, "loading_seconds": float}
_SCORES = {"confusion?": [[int]], "*": (*NUMBER, [object])}
_RESULTS = {
    **dict.fromkeys(("epoch?", "max_epochs?"), (int, None)),
    "simulated?": bool,
    "test?": _SCORES,
    "validation?": _SCORES,
    "subsets?": {"*": _SCORES},
    "heads?": {"*": _SCORES},
    "classes?": (None, [str]),
    "warnings?": [str],
    "*": object,
}
_CHECKPOINT = {"progress?": {"fingerprint?": {"*": object}, "*": object}, "*": object}
_START = {
    "command?": [str],
    "packages?": {"*": str},
    "started?": str,
    "changed?": (None, {"*": [object]}),
    "*": object,
}
_ENVIRONMENT = {"earlier_starts?": [_START], **_START}


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
            UserError: If that is no run folder, or a file in it is of another form than ours.
        """
        run = RunFolder.open(path)
        learn_metrics(run.metric_records)
        config, results = read_yaml(run.config), read_json(run.results, missing_ok=True)
        environment = read_json(run.environment, missing_ok=True)
        for value, form, file in (
            (config, _CONFIG, run.config),
            (results, _RESULTS, run.results),
            (environment, _ENVIRONMENT, run.environment),
        ):
            check_form(value, form, file)
        return cls(
            folder=run,
            config=config,
            environment=environment,
            metrics=_log(run.metrics, _EPOCH),
            balance=_log(run.balance, _STEP),
            timing=_log(run.timing, _TIMING),
            results=results,
            progress=_progress(run),
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.path.resolve().name

    @property
    def method(self) -> str:
        """The balancing method with its settings."""
        balancer = self.config.get("balancer")
        if balancer is None:
            return "no balancing method"
        return describe_method(balancer["name"], balancer["settings"])

    @property
    def validated(self) -> list[Json]:
        """The epochs that end in a validation."""
        return [row for row in self.metrics if any(key.startswith("val_") for key in row)]

    @property
    def validation_metrics(self) -> list[str]:
        """Names of what is validated, without ``val_``, in their order."""
        keys = dict.fromkeys(key for row in self.metrics for key in row if key.startswith("val_"))
        return [key.removeprefix("val_") for key in keys]


def _log(file: Path, form: Json) -> list[dict[str, Any]]:
    lines = read_jsonl(file) if file.exists() else []
    for number, line in enumerate(lines, 1):
        check_form(line, form, file, f"line {number}")
    return lines


def _progress(run: RunFolder) -> Json:
    headers = sorted(run.checkpoints.glob("*/checkpoint.json"))
    if not headers:
        return {}
    header = read_json(headers[-1])
    check_form(header, _CHECKPOINT, headers[-1])
    progress: Json = header.get("progress", {})
    return progress
