"""Records of finished trainings: which method, which seed, what it came to; and their store."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cggm.comparison.plan import PlannedRun
from cggm.errors import MethodRefusal, UserError
from cggm.runs import (
    NUMBER,
    JsonLines,
    RunFolder,
    check_form,
    learn_metrics,
    read_json,
    read_jsonl,
)

Metrics = Mapping[str, float | None]
_METRICS = {"*": NUMBER}
_RECORD = {
    **dict.fromkeys(("task", "method", "path"), str),
    "seed": int,
    **dict.fromkeys(("seconds", "peak_mb"), NUMBER),
    "simulated": bool,
    "test": _METRICS,
    **{key: {"*": _METRICS} for key in ("subsets", "heads")},
    "samples?": (int, None),
}
_REFUSAL = dict.fromkeys(("task", "method", "reason"), str)
_RESULTS = {
    "simulated?": bool,
    "test_samples?": int,
    **{key: {"*": object} for key in ("test?", "validation?")},
    **{key: {"*": {"*": object}} for key in ("subsets?", "heads?")},
    "*": object,
}


@dataclass(frozen=True)
class FinishedRun:
    """One finished run.

    Args:
        task: Such as ``"mosi"``.
        method: Of ``configs/methods``, or ``unimodal_<modality>`` for that modality alone.
        seed: Runs of one task and seed share data order and initialization, hence are paired.
        seconds: Duration of the training, ``None`` if it was interrupted.
        peak_mb: Peak memory, ``None`` where it was not measured.
        simulated: Whether the data were simulated.
        test: Metrics of the test split, ``None`` where one is undefined.
        subsets: Metrics with only some modalities present: ``{"text+audio": {...}}``.
        heads: Metrics of each modality's head, empty without heads.
        path: Folder of the run.
        samples: Of the test split, where the run tells.
    """

    task: str
    method: str
    seed: int
    seconds: float | None
    peak_mb: float | None
    simulated: bool
    test: Metrics
    subsets: Mapping[str, Metrics]
    heads: Mapping[str, Metrics]
    path: str
    samples: int | None = None


def read_records(path: Path) -> list[FinishedRun]:
    """Read a file with one JSON object per run.

    Args:
        path: The file; a last line without its end, as a crash leaves it, is ignored.

    Raises:
        UserError: If another line is no JSON object, or its keys are not those of a record.
    """
    return [_from_line(line, path, number) for number, line in enumerate(read_jsonl(path), 1)]


def _from_line(line: Mapping[str, object], path: Path, number: int) -> FinishedRun:
    expected = set(FinishedRun.__dataclass_fields__)
    if {*line, "samples"} != expected:
        wrong = ", ".join(sorted(expected ^ {*line, "samples"}))
        raise UserError(
            f"{path}, line {number}: expected the keys of a record, but these differ: {wrong}.",
            "Delete that line; its run is then repeated.",
        )
    check_form(dict(line), _RECORD, path, f"line {number}")
    return FinishedRun(**line)  # type: ignore[arg-type]


def of_task(records: Iterable[FinishedRun], task: str) -> list[FinishedRun]:
    """The records of one task."""
    return [record for record in records if record.task == task]


def of_method(records: Iterable[FinishedRun], method: str) -> list[FinishedRun]:
    """The records of one method."""
    return [record for record in records if record.method == method]


def tasks(records: Iterable[FinishedRun]) -> list[str]:
    """Names of the tasks, in order of appearance."""
    return list(dict.fromkeys(record.task for record in records))


def methods(records: Iterable[FinishedRun]) -> list[str]:
    """Names of the methods, in order of appearance."""
    return list(dict.fromkeys(record.method for record in records))


def modality_names(records: Iterable[FinishedRun]) -> list[str]:
    """Names of the modalities, in order of appearance in the heads and the subsets."""
    groups = [[*r.heads, *(name for key in r.subsets for name in key.split("+"))] for r in records]
    return list(dict.fromkeys(name for group in groups for name in group))


def by_seed(
    records: Iterable[FinishedRun], value: Callable[[FinishedRun], float | None]
) -> dict[int, float]:
    """A number of each seed, without the seeds that have none; a later record of a seed wins.

    Args:
        records: Runs of one task and one method.
        value: What is read from a record, such as ``lambda r: r.test.get("acc")``.
    """
    found = {record.seed: value(record) for record in records}
    return {seed: number for seed, number in found.items() if number is not None}


def seeds(records: Sequence[FinishedRun]) -> int:
    """How many seeds were run, whatever the method."""
    return len({record.seed for record in records})


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Args:
        run: The training.
        code: Exit code.
        seconds: Duration.
        peak_mb: Peak memory, ``None`` where the system does not tell.
        error: What it told of its end, ``None`` where it told nothing.
        resumed: Whether an earlier part of it was interrupted.
        log: All that it printed.
    """

    run: PlannedRun
    code: int
    seconds: float
    peak_mb: float | None
    error: UserError | None
    resumed: bool
    log: Path

    @property
    def refused(self) -> bool:
        """Whether the method cannot serve the task, under whatever seed."""
        return isinstance(self.error, MethodRefusal)

    @property
    def failed(self) -> bool:
        """Whether it ended without a result, and not because the method refused the task."""
        return self.code != 0 and not self.refused

    @property
    def message(self) -> str:
        """Reason of its failure or refusal, for a person, from its error or the end of its log."""
        if self.error is not None:
            return str(self.error)
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class RecordStore:
    """Finished trainings are lines of ``runs.jsonl``, refusals lines of ``refused.jsonl``.

    Args:
        output: Folder of the comparison.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    @property
    def _finished(self) -> Path:
        return self.output / "runs.jsonl"

    @property
    def _refused(self) -> Path:
        return self.output / "refused.jsonl"

    def records(self, order: Sequence[PlannedRun] = ()) -> list[FinishedRun]:
        """Trainings that are finished: those of ``order`` first, in its order.

        Metrics that they registered are known afterwards.
        """
        records = self._read()
        for record in records:
            learn_metrics(RunFolder(self.output / record.path).metric_records)
        position = {run.key: number for number, run in enumerate(order)}
        return sorted(records, key=lambda r: position.get(_key(r), len(position)))

    def _read(self) -> list[FinishedRun]:
        return read_records(self._finished) if self._finished.exists() else []

    def refused(self) -> dict[tuple[str, str], str]:
        """Reasons by task and method."""
        lines = read_jsonl(self._refused) if self._refused.exists() else []
        for number, line in enumerate(lines, 1):
            check_form(line, _REFUSAL, self._refused, f"line {number}")
        return {(row["task"], row["method"]): row["reason"] for row in lines}

    def pending(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Those that are neither finished nor refused, be it under another seed."""
        done = {*map(_key, self._read())}
        refused = self.refused()
        return [r for r in runs if r.key not in done and (r.task.name, r.method) not in refused]

    def keep(self, outcome: Outcome) -> None:
        """Append a line, unless the training failed.

        Raises:
            UserError: If it left no metrics.
        """
        if outcome.failed:
            return
        if outcome.refused:
            run = outcome.run
            row = {"task": run.task.name, "method": run.method, "reason": outcome.message}
            file = self._refused
        else:
            row, file = asdict(_record(outcome, self.output)), self._finished
        with JsonLines(file) as lines:
            lines.write(row)


def _key(record: FinishedRun) -> tuple[str, str, int]:
    return (record.task, record.method, record.seed)


def _record(outcome: Outcome, output: Path) -> FinishedRun:
    run = outcome.run
    folder = RunFolder(run.folder(output))
    results = _results(folder)
    return FinishedRun(
        task=run.task.name,
        method=run.method,
        seed=run.seed,
        seconds=None if outcome.resumed else round(outcome.seconds, 2),
        peak_mb=outcome.peak_mb,
        simulated=results.get("simulated", False),
        test=_numbers(results.get("test") or results["validation"]),
        subsets={name: _numbers(row) for name, row in results.get("subsets", {}).items()},
        heads={name: _numbers(row) for name, row in results.get("heads", {}).items()},
        path=str(folder.path.relative_to(output)),
        samples=results.get("test_samples"),
    )


def _results(folder: RunFolder) -> dict[str, Any]:
    results: dict[str, Any] = read_json(folder.results, missing_ok=True)
    check_form(results, _RESULTS, folder.results)
    if not {"test", "validation"} & results.keys():
        raise UserError(
            f"{folder.path}: the training left no metrics of its own.",
            "Its configuration must ask for one seed, one fold and a validation.",
        )
    return results


def _numbers(metrics: Mapping[str, object]) -> dict[str, float | None]:
    kinds = (int, float, type(None))
    return {name: value for name, value in metrics.items() if isinstance(value, kinds)}
