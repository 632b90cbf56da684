"""What the trainings of a comparison came to, kept in its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cggm.comparison.plan import Run
from cggm.comparison.records import Record, read_records
from cggm.errors import UserError
from cggm.runs import JsonLines, RunFolder, read_jsonl

_WRONG_USAGE = 2  # exit code, see cggm.runs.cli
_REFUSAL = " cannot be used here: "  # see cggm.methods.build


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Args:
        run: The training.
        code: Exit code.
        seconds: Duration.
        peak_mb: Peak memory, ``None`` where the system does not tell.
        message: Last line that it printed.
        resumed: Whether an earlier part of it was interrupted.
        log: All that it printed.
    """

    run: Run
    code: int
    seconds: float
    peak_mb: float | None
    message: str
    resumed: bool
    log: Path

    @property
    def refused(self) -> bool:
        """Whether the method cannot serve the task."""
        return self.code == _WRONG_USAGE and _REFUSAL in self.message

    @property
    def failed(self) -> bool:
        """Whether it ended without a result, and not because the method refused the task."""
        return self.code != 0 and not self.refused


class Store:
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

    def records(self, order: Sequence[Run] = ()) -> list[Record]:
        """Trainings that are finished: those of ``order`` first, in its order."""
        records = read_records(self._finished) if self._finished.exists() else []
        position = {run.key: number for number, run in enumerate(order)}
        return sorted(records, key=lambda r: position.get(_key(r), len(position)))

    def refused(self) -> dict[tuple[str, str], str]:
        """Reasons by task and method."""
        lines = read_jsonl(self._refused) if self._refused.exists() else []
        try:
            return {(row["task"], row["method"]): row["reason"] for row in lines}
        except KeyError as error:
            raise UserError(
                f"{self._refused}: a line without {error}.", "Delete the file; nothing is lost."
            ) from error

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """Those that are neither finished nor refused, be it under another seed."""
        done = {*map(_key, self.records())}
        refused = self.refused()
        return [r for r in runs if r.key not in done and (r.task, r.method) not in refused]

    def keep(self, outcome: Outcome) -> None:
        """Append a line, unless the training failed.

        Raises:
            UserError: If it left no metrics.
        """
        if outcome.failed:
            return
        if outcome.refused:
            run = outcome.run
            row = {"task": run.task, "method": run.method, "reason": outcome.message}
            file = self._refused
        else:
            row, file = asdict(_record(outcome, self.output)), self._finished
        with JsonLines(file) as lines:
            lines.write(row)


def _key(record: Record) -> tuple[str, str, int]:
    return (record.task, record.method, record.seed)


def _record(outcome: Outcome, output: Path) -> Record:
    run = outcome.run
    folder = RunFolder(run.folder(output))
    results = _results(folder)
    return Record(
        task=run.task,
        method=run.method,
        seed=run.seed,
        seconds=None if outcome.resumed else round(outcome.seconds, 2),
        peak_mb=outcome.peak_mb,
        simulated=results["simulated"],
        test=_numbers(results.get("test") or results["validation"]),
        subsets={name: _numbers(row) for name, row in results["subsets"].items()},
        heads={name: _numbers(row) for name, row in results.get("heads", {}).items()},
        path=str(folder.path.relative_to(output)),
    )


def _results(folder: RunFolder) -> dict[str, Any]:
    results = json.loads(folder.results.read_text("utf-8")) if folder.results.exists() else {}
    if not {"test", "validation"} & results.keys():
        raise UserError(
            f"{folder.path}: the training left no metrics of its own.",
            "Its configuration must ask for one seed, one fold and a validation.",
        )
    return results


def _numbers(metrics: Mapping[str, object]) -> dict[str, float | None]:
    kinds = (int, float, type(None))
    return {name: value for name, value in metrics.items() if isinstance(value, kinds)}
