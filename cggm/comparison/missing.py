"""Tables of one task: those that its trainings fill, and those of missing modalities."""

from collections.abc import Sequence

from cggm.comparison.records import (
    FinishedRun,
    by_seed,
    methods,
    modality_names,
    of_method,
    of_task,
)
from cggm.comparison.tables import (
    ABLATION,
    SPREAD_NOTE,
    ablation_table,
    assemble,
    cost_table,
    heads_table,
    performance_table,
    spread_column,
)
from cggm.display import Cell, Table
from cggm.reports import Task
from cggm.runs import find_metric


def missing_table(records: Sequence[FinishedRun], task: str, metric: str) -> Table:
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
        subset: spread_column([values(name, subset) for name in shown], metric, runs)
        for subset in subsets
    }
    title = f"Missing modalities on {task}: {find_metric(metric).heading}"
    return assemble(title, runs, columns, (SPREAD_NOTE,))


def subset_mean_table(records: Sequence[FinishedRun], task: str, metrics: Sequence[str]) -> Table:
    """Mean of each metric over all subsets of modalities but the empty one, that of all included.

    A training that lacks a subset, or a metric in one, has no mean.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metrics: Keys of the metrics of each subset and of ``test``.
    """
    runs = of_task(records, task)
    names = methods(run for run in runs if run.subsets)
    count = 2 ** len(modality_names(runs)) - 1

    def mean(run: FinishedRun, metric: str) -> float | None:
        every = [row.get(metric) for row in (*run.subsets.values(), run.test)]
        known = [value for value in every if value is not None]
        return sum(known) / count if len(known) == count else None

    columns = {"method": [*map(Cell, names)]}
    for metric in metrics:
        values = [by_seed(of_method(runs, n), lambda r, m=metric: mean(r, m)) for n in names]  # type: ignore[misc]
        columns[metric] = spread_column(values, metric, runs)
    shown = [*map(find_metric, metrics)]
    title = f"Mean over the {count} subsets of modalities on {task}"
    return assemble(title, runs, columns, (SPREAD_NOTE,), shown)


def task_tables(records: Sequence[FinishedRun], task: Task) -> dict[str, Table]:
    """Tables by name, those alone that the trainings fill.

    Args:
        records: Of any tasks and methods.
        task: Which one.
    """
    name, metrics = task.name, task.metrics
    runs = of_task(records, name)
    found = set(methods(runs))
    tables = {"performance": performance_table(records, name, metrics)}
    if (heads := heads_table(records, name, metrics[0])).rows:
        tables["heads"] = heads
    if found >= {*ABLATION}:
        tables["ablation"] = ablation_table(records, name, metrics)
    if any(run.subsets for run in runs):
        tables["missing"] = missing_table(records, name, metrics[0])
        tables["missing-mean"] = subset_mean_table(records, name, metrics)
    if "plain" in found:
        tables["cost"] = cost_table(records, name)
    return tables
