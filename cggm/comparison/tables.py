"""Tables of a comparison, built from the records of its runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Literal

from cggm.comparison import records as select
from cggm.comparison.plan import shown_metrics
from cggm.comparison.records import Record, by_seed, methods, modalities, of_method, of_task, seeds
from cggm.comparison.rendering import DASH, Cell, Table
from cggm.comparison.statistics import (
    FEWEST_SEEDS,
    Difference,
    Rank,
    average_ranks,
    compare,
    summarize,
)
from cggm.runs import find_metric

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
        metric: Tells the direction and the digits.
        runs: Seeds that were asked for; a cell with fewer says how many.
    """
    summaries = [summarize(own.values()) for own in values]
    record = find_metric(metric)
    digits = record.digits
    means = [round(s.mean, digits) if s.n else None for s in summaries]
    texts = [
        (f"{s.mean:.{digits}f}" if s.n else DASH)
        + (f" ± {s.sd:.{digits}f}" if s.n > 1 else "")
        + (f" (n={s.n})" if 0 < s.n < runs else "")
        for s in summaries
    ]
    return [*map(Cell, texts, marks(means, lower_better=record.lower_is_better))]


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


ABLATION = ("joint", "cggm_magnitude", "cggm_direction", "cggm")
Read = Callable[[Record], float | None]
_SPREAD = "Mean ± standard deviation over seeds; n where a seed has no value."
_VERDICT = (
    "Differences to {} are paired by seed, with a 95 % bootstrap interval; one that contains "
    f"zero, or has fewer than {FEWEST_SEEDS} common seeds, is no difference."
)


def performance_table(
    records: Sequence[Record],
    task: str,
    metrics: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    reference: str = "joint",
) -> Table:
    """Metrics of each method and their differences to joint training: the paper's tables 2-4.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metrics: Keys of ``test``.
        names: Methods in the order of the rows, run or not; all that were run where ``None``.
        reference: What the others are compared with.
    """
    runs = of_task(records, task)
    shown = methods(runs) if names is None else names
    columns = {"method": [*map(Cell, shown)]}
    for metric in metrics:
        columns |= _metric_columns(runs, shown, metric, reference)
    notes = (_SPREAD, _VERDICT.format(reference))
    return assemble(f"Performance on {task}", runs, columns, notes)


def ablation_table(records: Sequence[Record], task: str, metrics: Sequence[str]) -> Table:
    """Magnitude and direction alone and together, against joint training: the paper's table 6.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metrics: Keys of ``test``.
    """
    table = performance_table(records, task, metrics, names=ABLATION)
    title = table.title.replace("Performance", "Ablation of CGGM", 1)
    return Table(title, table.columns, table.rows, table.notes)


def heads_table(
    records: Sequence[Record],
    task: str,
    metric: str,
    names: Sequence[str] = ("unimodal", "joint", "cggm"),
) -> Table:
    """How well each modality's head does under each training: the paper's table 5.

    The row ``unimodal`` holds the test metric of ``unimodal_<modality>``, trained end to end. The
    other heads may see detached features, so they tell what an encoder came to hold and may lie
    below it for that reason alone.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metric: A key of the heads' metrics and of ``test``.
        names: Rows.
    """
    runs = of_task(records, task)

    def values(name: str, modality: str) -> dict[int, float]:
        if name == "unimodal":
            return _test(of_method(runs, f"unimodal_{modality}"), metric)
        return by_seed(of_method(runs, name), lambda r: r.heads.get(modality, {}).get(metric))

    columns = {"training": [*map(Cell, names)]} | {
        modality: spread_column([values(name, modality) for name in names], metric, seeds(runs))
        for modality in modalities(runs)
    }
    return assemble(f"Each modality's head on {task}: {metric}", runs, columns, (_SPREAD,))


def missing_table(records: Sequence[Record], task: str, metric: str) -> Table:
    """Each method with only some modalities present at test, the fewest first.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metric: A key of the metrics of each subset.
    """
    runs = of_task(records, task)
    shown = methods(run for run in runs if run.subsets)
    subsets = sorted(
        dict.fromkeys(key for r in runs for key in r.subsets), key=lambda s: s.count("+")
    )

    def values(name: str, subset: str) -> dict[int, float]:
        return by_seed(of_method(runs, name), lambda r: r.subsets.get(subset, {}).get(metric))

    columns = {"method": [*map(Cell, shown)]} | {
        subset: spread_column([values(name, subset) for name in shown], metric, seeds(runs))
        for subset in subsets
    }
    return assemble(f"Missing modalities on {task}: {metric}", runs, columns, (_SPREAD,))


def cost_table(records: Sequence[Record], task: str, *, reference: str = "plain") -> Table:
    """Time and memory of each method relative to training without heads: the paper's table 8.

    Ratios are taken seed by seed and their median is shown, which one disturbed run does not move.
    They mean something only where all runs had the same machine to themselves.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        reference: What the others are divided by.
    """
    runs = of_task(records, task)
    columns = {"method": [*map(Cell, methods(runs))]}
    columns |= _cost_columns(runs, "seconds", lambda r: r.seconds, reference)
    columns |= _cost_columns(runs, "peak MB", lambda r: r.peak_mb, reference)
    notes = (f"Medians over seeds, and of the ratios to {reference} under the same seed.",)
    return assemble(f"Cost of training on {task}", runs, columns, notes)


def rank_table(records: Sequence[Record], metrics_by_task: Mapping[str, Sequence[str]]) -> Table:
    """Rank of each method per task and metric, and on average.

    See :func:`cggm.comparison.statistics.average_ranks`.

    Args:
        records: Of any tasks and methods.
        metrics_by_task: What to rank by.
    """
    found = average_ranks(records, metrics_by_task)
    averages = [round(r.average, 2) if r.complete else None for r in found.values()]
    marked = marks(averages, lower_better=True)
    texts = [_average(r, len(metrics_by_task)) for r in found.values()]
    columns = {"method": [*map(Cell, found)], "average rank": [*map(Cell, texts, marked)]}
    for task, chosen in metrics_by_task.items():
        for metric in chosen:
            own = [r.columns.get((task, metric)) for r in found.values()]
            texts = [DASH if r is None else f"{r:g}" for r in own]
            columns[f"{task} {metric}"] = [*map(Cell, texts, marks(own, lower_better=True))]
    runs = [record for record in records if record.task in metrics_by_task]
    notes = (
        "1 is best, equal means share a rank, and every task weighs the same.",
        "An average over fewer tasks than all is not comparable with the others.",
    )
    return assemble("Ranks of the methods", runs, columns, notes)


def _test(records: Sequence[Record], metric: str) -> dict[int, float]:
    return by_seed(records, lambda r: r.test.get(metric))


def _metric_columns(
    runs: Sequence[Record], names: Sequence[str], metric: str, reference: str
) -> dict[str, list[Cell]]:
    values = [_test(of_method(runs, name), metric) for name in names]
    found = compare(runs, metric, reference=reference)
    differences = [found.get(name) for name in names]
    return {
        metric: spread_column(values, metric, seeds(runs)),
        f"{metric} - {reference}": [*map(difference_cell, differences)],
        f"verdict on {metric}": [*map(verdict_cell, differences)],
    }


def _cost_columns(
    runs: Sequence[Record], heading: str, read: Read, reference: str
) -> dict[str, list[Cell]]:
    base = by_seed(of_method(runs, reference), read)
    own = [by_seed(of_method(runs, name), read) for name in methods(runs)]
    ratios = [[v[seed] / base[seed] for seed in v if seed in base] for v in own]
    return {
        heading: [Cell(f"{median(v.values()):.1f}" if v else DASH) for v in own],
        f"{heading} / {reference}": [Cell(f"{median(v):.2f}" if v else DASH) for v in ratios],
    }


def _average(rank: Rank, tasks: int) -> str:
    if not rank.tasks:
        return DASH
    return f"{rank.average:.2f}" + ("" if rank.complete else f" ({rank.tasks} of {tasks} tasks)")


def task_tables(records: Sequence[Record], task: str) -> dict[str, Table]:
    """Tables by name, those alone that the trainings fill.

    Args:
        records: Of any tasks and methods.
        task: Which one.
    """
    metrics = shown_metrics(task)
    runs = select.of_task(records, task)
    found = set(select.methods(runs))
    tables = {"performance": performance_table(records, task, metrics)}
    if any(run.heads for run in runs):
        tables["heads"] = heads_table(records, task, metrics[0])
    if found >= {*ABLATION}:
        tables["ablation"] = ablation_table(records, task, metrics)
    if any(run.subsets for run in runs):
        tables["missing"] = missing_table(records, task, metrics[0])
    if "plain" in found:
        tables["cost"] = cost_table(records, task)
    return tables
