"""Tables of a comparison, built from the records of its runs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from cggm.comparison.records import (
    FinishedRun,
    by_seed,
    methods,
    modality_names,
    of_method,
    of_task,
    seeds,
)
from cggm.comparison.statistics import (
    FEWEST_RANKED,
    FEWEST_SEEDS,
    Difference,
    MethodRank,
    average_ranks,
    compare,
    one_sample,
    spread,
)
from cggm.display import DASH, Cell, Mark, Table
from cggm.reports import Task, find_task
from cggm.runs import Metric, find_metric


def known_tasks(records: Sequence[FinishedRun], table: Mapping[str, Task]) -> list[Task]:
    """Tasks of trainings in order of appearance, all of whose shown metrics are registered.

    Where the data decide (classes or numbers, which modalities), a task shows those of its metrics
    that its trainings have, and knows the modalities that they name.

    Args:
        records: Of any tasks.
        table: Tasks by name.

    Raises:
        UserError: If a task or a metric is unknown.
    """
    found = [find_task(name, table) for name in dict.fromkeys(r.task for r in records)]
    for task in found:
        task.shown_metrics()
    return [_as_trained(task, of_task(records, task.name)) for task in found]


def _as_trained(task: Task, runs: Sequence[FinishedRun]) -> Task:
    measured = tuple(name for name in task.metrics if any(name in run.test for run in runs))
    modalities = dict.fromkeys([*task.modalities, *modality_names(runs)])
    return replace(task, metrics=measured or task.metrics, modalities=tuple(modalities))


def assemble(
    title: str,
    records: Iterable[FinishedRun],
    columns: Mapping[str, Sequence[Cell]],
    notes: tuple[str, ...] = (),
    metrics: Sequence[Metric] = (),
) -> Table:
    """A table from its columns; its title says so where a record is simulated.

    Args:
        title: What the table shows.
        records: What it was made of.
        columns: By key, of equal length.
        notes: Sentences below it.
        metrics: Those whose labels stand in its heads in place of their names in the keys.
    """
    rows = tuple(zip(*columns.values(), strict=True))
    heads = tuple(_labelled(key, metrics) for key in columns)
    return Table(title + simulated_suffix(records), tuple(columns), rows, notes, heads)


def _labelled(key: str, metrics: Sequence[Metric]) -> str:
    labels = {metric.name: metric.heading for metric in metrics}
    return " ".join(labels.get(word, word) for word in key.split(" "))


def simulated_suffix(records: Iterable[FinishedRun]) -> str:
    """What a title ends with: `` (SIMULATED)`` where any record is."""
    return " (SIMULATED)" if any(record.simulated for record in records) else ""


def spread_column(
    values: Sequence[Mapping[int, float]], metric: str, records: Sequence[FinishedRun]
) -> list[Cell]:
    """Mean ± standard deviation of each method, the best two marked.

    None is marked of a single seed, nor for less than what one test sample makes.

    Args:
        values: By seed, for each row.
        metric: Tells the direction and the digits.
        records: All runs of the task; a cell that lacks one of their seeds says how many it has.
    """
    runs = seeds(records)
    summaries = [spread(own.values()) for own in values]
    record = find_metric(metric)
    digits = record.digits
    means = [round(s.mean, digits) if s.n else None for s in summaries]
    texts = [
        (f"{s.mean:.{digits}f}" if s.n else DASH)
        + (f" ± {s.sd:.{digits}f}" if s.n > 1 else "")
        + (f" (n={s.n})" if 0 < s.n < runs else "")
        for s in summaries
    ]
    ranked = means if runs >= FEWEST_RANKED else [None] * len(means)
    marked = marks(ranked, lower_better=record.lower_is_better, alike=one_sample(records, metric))
    return [*map(Cell, texts, marked)]


def difference_cell(difference: Difference | None, digits: int) -> Cell:
    """Mean difference and its interval; a dash without a common seed.

    Args:
        difference: The difference.
        digits: Behind the decimal point, one more than those of the metric itself.
    """
    if difference is None or difference.n == 0:
        return Cell()
    ends = (difference.mean, difference.low, difference.high)
    mean, low, high = (signed(value, digits) for value in ends)
    return Cell(mean) if math.isnan(difference.low) else Cell(f"{mean} [{low}, {high}]")


def verdict_cell(difference: Difference | None) -> Cell:
    """What may be said of a difference; a dash without a common seed."""
    if difference is None or not difference.n:
        return Cell(DASH)
    seeds = f" ({difference.n} seed{'' if difference.n == 1 else 's'})"
    return Cell(difference.verdict + (seeds if difference.verdict == "not decided" else ""))


def signed(value: float, digits: int) -> str:
    """A number with its sign, as in ``+0.0120`` and ``-∞``."""
    return f"{value:+.{digits}f}".replace("inf", "∞")


def marks(values: Sequence[float | None], *, lower_better: bool, alike: float = 0.0) -> list[Mark]:
    """Which values are the best and the second best of a column; equal ones share a mark.

    Args:
        values: As they are shown; ``None`` where there is none.
        lower_better: Direction.
        alike: Distance from the better one up to which values count as equal.
    """
    groups: list[list[float]] = []
    for value in sorted({v for v in values if v is not None}, reverse=not lower_better):
        if not groups or abs(value - groups[-1][0]) > alike:
            groups.append([])
        groups[-1].append(value)
    best, second = groups[:2] if len(groups) > 1 else ([], [])  # one alone has no best
    return ["best" if v in best else "second" if v in second else "" for v in values]


ABLATION = ("joint", "cggm_magnitude", "cggm_direction", "cggm")
Read = Callable[[FinishedRun], float | None]
SPREAD_NOTE = "Mean ± standard deviation over seeds; n where a seed has no value."
_VERDICT = (
    "Differences to {} are paired by seed, with a 95 % bootstrap interval; one that contains zero "
    f"is no difference. Below {FEWEST_SEEDS} common seeds nothing is decided."
)


def performance_table(
    records: Sequence[FinishedRun],
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
    notes = (SPREAD_NOTE, _VERDICT.format(reference))
    shown_metrics = [*map(find_metric, metrics)]
    return assemble(f"Performance on {task}", runs, columns, notes, shown_metrics)


def verdict_table(
    records: Sequence[FinishedRun], tasks: Sequence[Task], *, reference: str = "joint"
) -> Table | None:
    """What may be said of each method on each task's first metric; ``None`` without a difference.

    Args:
        records: Of any tasks and methods.
        tasks: Which ones.
        reference: What the others are compared with.
    """
    rows: list[tuple[Cell, ...]] = []
    for task in tasks:
        metric = find_metric(task.metrics[0])
        alone = {f"unimodal_{name}" for name in task.modalities}
        found = compare(of_task(records, task.name), metric.name, reference=reference)
        rows += [
            (Cell(task.name), Cell(name), Cell(metric.heading),
             difference_cell(difference, metric.digits + 1), verdict_cell(difference))
            for name, difference in found.items()
            if difference.n and name not in alone
        ]  # fmt: skip
    columns = ("task", "method", "metric", f"difference to {reference}", "verdict")
    if not rows:
        return None
    title = "Verdicts" + simulated_suffix(records)
    return Table(title, columns, tuple(rows), (_VERDICT.format(reference),))


def ablation_table(records: Sequence[FinishedRun], task: str, metrics: Sequence[str]) -> Table:
    """Magnitude and direction alone and together, against joint training: the paper's table 6.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metrics: Keys of ``test``.
    """
    table = performance_table(records, task, metrics, names=ABLATION)
    title = table.title.replace("Performance", "Ablation of CGGM", 1)
    return replace(table, title=title)


def heads_table(records: Sequence[FinishedRun], task: str, metric: str) -> Table:
    """How well each modality's head does under each training: the paper's table 5.

    The row ``unimodal`` holds the test metric of ``unimodal_<modality>``, trained end to end. The
    other heads may see detached features, so they tell what an encoder came to hold and may lie
    below it for that reason alone.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metric: A key of the heads' metrics and of ``test``.
    """
    runs = of_task(records, task)
    modalities = modality_names(runs)

    def values(name: str, modality: str) -> dict[int, float]:
        if name == "unimodal":
            return _test(of_method(runs, f"unimodal_{modality}"), metric)
        return by_seed(of_method(runs, name), lambda r: r.heads.get(modality, {}).get(metric))

    shown = ("unimodal", "joint", "cggm")
    names = [name for name in shown if any(values(name, m) for m in modalities)]
    columns = {"training": [*map(Cell, names)]} | {
        modality: spread_column([values(name, modality) for name in names], metric, runs)
        for modality in modalities
    }
    title = f"Each modality's head on {task}: {find_metric(metric).heading}"
    return assemble(title, runs, columns, (SPREAD_NOTE,))


def cost_table(records: Sequence[FinishedRun], task: str, *, reference: str = "plain") -> Table:
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


def rank_table(
    records: Sequence[FinishedRun], metrics_by_task: Mapping[str, Sequence[str]]
) -> Table:
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
        "1 is best, means that one test sample parts share a rank, and every task weighs the same.",
        "An average over fewer tasks than all is not comparable with the others.",
    )
    named = [find_metric(name) for chosen in metrics_by_task.values() for name in chosen]
    return assemble("Ranks of the methods", runs, columns, notes, named)


def _test(records: Sequence[FinishedRun], metric: str) -> dict[int, float]:
    return by_seed(records, lambda r: r.test.get(metric))


def _metric_columns(
    runs: Sequence[FinishedRun], names: Sequence[str], metric: str, reference: str
) -> dict[str, list[Cell]]:
    values = [_test(of_method(runs, name), metric) for name in names]
    found = compare(runs, metric, reference=reference)
    differences = [found.get(name) for name in names]
    digits = find_metric(metric).digits + 1
    return {
        metric: spread_column(values, metric, runs),
        f"{metric} - {reference}": [difference_cell(d, digits) for d in differences],
        f"verdict on {metric}": [*map(verdict_cell, differences)],
    }


def _cost_columns(
    runs: Sequence[FinishedRun], heading: str, read: Read, reference: str
) -> dict[str, list[Cell]]:
    base = by_seed(of_method(runs, reference), read)
    own = [by_seed(of_method(runs, name), read) for name in methods(runs)]
    ratios = [[v[seed] / base[seed] for seed in v if seed in base] for v in own]
    return {
        heading: [Cell(f"{median(v.values()):.1f}" if v else DASH) for v in own],
        f"{heading} / {reference}": [Cell(f"{median(v):.2f}" if v else DASH) for v in ratios],
    }


def _average(rank: MethodRank, tasks: int) -> str:
    if not rank.tasks:
        return DASH
    return f"{rank.average:.2f}" + ("" if rank.complete else f" ({rank.tasks} of {tasks} tasks)")
