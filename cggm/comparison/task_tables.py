"""The tables that a comparison shows of one task."""

from collections.abc import Sequence

from cggm.comparison import records as select
from cggm.comparison.records import Record
from cggm.comparison.rendering import Table
from cggm.comparison.tables import (
    ABLATION,
    ablation_table,
    cost_table,
    heads_table,
    missing_table,
    performance_table,
)
from cggm.comparison.tasks import TASKS


def task_tables(records: Sequence[Record], task: str) -> dict[str, Table]:
    """Tables by name, those alone that the trainings fill.

    Args:
        records: Of any tasks and methods.
        task: Which one.
    """
    metrics = TASKS[task].metrics
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
