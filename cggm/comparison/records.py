"""Records of finished runs: which method, which seed, what it came to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm.errors import UserError
from cggm.runs import read_jsonl

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Record:
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


def read_records(path: Path) -> list[Record]:
    """Read a file with one JSON object per run.

    Args:
        path: The file; a last line without its end, as a crash leaves it, is ignored.

    Raises:
        UserError: If another line is no JSON object, or its keys are not those of a record.
    """
    return [_record(line, path, number) for number, line in enumerate(read_jsonl(path), 1)]


def _record(line: Mapping[str, object], path: Path, number: int) -> Record:
    expected = set(Record.__dataclass_fields__)
    if set(line) != expected:
        wrong = ", ".join(sorted(expected ^ set(line)))
        raise UserError(
            f"{path}, line {number}: expected the keys of a record, but these differ: {wrong}.",
            "Delete that line; its run is then repeated.",
        )
    return Record(**line)  # type: ignore[arg-type]


def of_task(records: Iterable[Record], task: str) -> list[Record]:
    """The records of one task."""
    return [record for record in records if record.task == task]


def of_method(records: Iterable[Record], method: str) -> list[Record]:
    """The records of one method."""
    return [record for record in records if record.method == method]


def tasks(records: Iterable[Record]) -> list[str]:
    """Names of the tasks, in order of appearance."""
    return list(dict.fromkeys(record.task for record in records))


def methods(records: Iterable[Record]) -> list[str]:
    """Names of the methods, in order of appearance."""
    return list(dict.fromkeys(record.method for record in records))


def modalities(records: Iterable[Record]) -> list[str]:
    """Names of the modalities, in order of appearance in the heads and the subsets."""
    groups = [[*r.heads, *(name for key in r.subsets for name in key.split("+"))] for r in records]
    return list(dict.fromkeys(name for group in groups for name in group))


def by_seed(records: Iterable[Record], value: Callable[[Record], float | None]) -> dict[int, float]:
    """A number of each seed, without the seeds that have none; a later record of a seed wins.

    Args:
        records: Runs of one task and one method.
        value: What is read from a record, such as ``lambda r: r.test.get("acc")``.
    """
    found = {record.seed: value(record) for record in records}
    return {seed: number for seed, number in found.items() if number is not None}


def seeds(records: Sequence[Record]) -> int:
    """How many seeds were run, whatever the method."""
    return len({record.seed for record in records})
