"""How numbers are written into tables, and which of a column stand out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from cggm.comparison.records import Record
from cggm.comparison.rendering import DASH, Cell, Table
from cggm.comparison.statistics import Difference, lower_is_better, summarize

Mark = Literal["", "best", "second"]


def assemble(
    title: str,
    records: Iterable[Record],
    columns: Mapping[str, Sequence[Cell]],
    notes: tuple[str, ...] = (),
) -> Table:
    """A table from its columns; its title says so where a record is simulated.

    Args:
        title: What the table shows.
        records: What it was made of.
        columns: By heading, of equal length.
        notes: Sentences below it.
    """
    rows = tuple(zip(*columns.values(), strict=True))
    return Table(title + simulated_suffix(records), tuple(columns), rows, notes)


def simulated_suffix(records: Iterable[Record]) -> str:
    """What a title ends with: `` (SIMULATED)`` where any record is."""
    return " (SIMULATED)" if any(record.simulated for record in records) else ""


def spread_column(values: Sequence[Mapping[int, float]], metric: str, runs: int) -> list[Cell]:
    """Mean ± standard deviation of each method, the best two marked.

    Args:
        values: By seed, for each row.
        metric: Tells the direction.
        runs: Seeds that were asked for; a cell with fewer says how many.
    """
    summaries = [summarize(own.values()) for own in values]
    means = [round(s.mean, 3) if s.n else None for s in summaries]
    texts = [
        (f"{s.mean:.3f}" if s.n else DASH)
        + (f" ± {s.sd:.3f}" if s.n > 1 else "")
        + (f" (n={s.n})" if 0 < s.n < runs else "")
        for s in summaries
    ]
    return [*map(Cell, texts, marks(means, lower_better=lower_is_better(metric)))]


def difference_cell(difference: Difference | None) -> Cell:
    """Mean difference and its interval; a dash without a common seed."""
    if difference is None or difference.n == 0:
        return Cell()
    mean = signed(difference.mean)
    if difference.n == 1:
        return Cell(mean)
    return Cell(f"{mean} [{signed(difference.low)}, {signed(difference.high)}]")


def verdict_cell(difference: Difference | None) -> Cell:
    """What may be said of a difference; a dash without a common seed."""
    return Cell(difference.verdict if difference and difference.n else DASH)


def signed(value: float) -> str:
    """Four digits behind the point and a sign, as in ``+0.0120`` and ``-∞``."""
    return f"{value:+.4f}".replace("inf", "∞")


def marks(values: Sequence[float | None], *, lower_better: bool) -> list[Mark]:
    """Which values are the best and the second best of a column; equal ones share a mark.

    Args:
        values: As they are shown; ``None`` where there is none.
        lower_better: Direction.
    """
    known = sorted({v for v in values if v is not None}, reverse=not lower_better)
    named: dict[float | None, Mark] = dict(zip(known, ("best", "second")))  # noqa: B905
    # A column that only one value fills has no best.
    return ["" if len(known) < 2 else named.get(value, "") for value in values]
