"""The report of a comparison: tables, intervals, ranks, and curves side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from cggm.comparison import records as select
from cggm.comparison.ranks import average_ranks
from cggm.comparison.records import Record
from cggm.comparison.rendering import Table
from cggm.comparison.report_curves import curves
from cggm.comparison.statistics import compare, lower_is_better
from cggm.comparison.tables import rank_table
from cggm.comparison.task_tables import task_tables
from cggm.comparison.tasks import TASKS
from cggm.reports.page import NOTHING, Section, write_page
from cggm.reports.points import Dot, dot_chart
from cggm.reports.tables import Column, marked_table, plain_table


def write_report(
    output: Path, records: Sequence[Record], refused: Mapping[tuple[str, str], str]
) -> Path:
    """Write ``report.html`` of a comparison.

    Args:
        output: Its folder.
        records: Finished trainings, in the order that tables have.
        refused: Reasons by task and method.
    """
    tasks, methods = select.tasks(records), select.methods(records)
    simulated = select.tasks(record for record in records if record.simulated)
    seeds = sorted({record.seed for record in records})
    return write_page(
        output / "report.html",
        title=f"Comparison of balancing methods on {', '.join(tasks) or 'no task'}",
        lead=f"{len(records)} trainings: {len(methods)} methods, seeds "
        f"{', '.join(map(str, seeds)) or 'none'}. All methods have the same epochs, data order and "
        "initial weights per seed.",
        sections=[
            *([_ranks(records)] if len(methods) > 1 else []),
            *(_task(output, records, task) for task in tasks),
            _refusals(refused),
        ],
        simulated=f"Data of {', '.join(simulated)} are simulated: {NOTHING}" if simulated else "",
    )


def _task(output: Path, records: Sequence[Record], task: str) -> Section:
    own = select.of_task(records, task)
    parts = [
        _differences(own, task),
        *(_table(table) for table in task_tables(records, task).values()),
        curves(output, own, TASKS[task].metrics[0]),
    ]
    return Section(task, Markup().join(parts))


def _differences(records: Sequence[Record], task: str) -> Markup:
    metric = TASKS[task].metrics[0]
    alone = {f"unimodal_{name}" for name in TASKS[task].modalities}
    found = {n: d for n, d in compare(records, metric).items() if d.n and n not in alone}
    if not found:
        return Markup()
    sign = 1 if lower_is_better(metric) else -1
    dots = [
        Dot(name, d.mean, d.low if d.n > 1 else d.mean, d.high if d.n > 1 else d.mean, d.verdict)
        for name, d in sorted(found.items(), key=lambda item: sign * item[1].mean)
    ]
    note = (
        f"{'lower' if sign > 0 else 'higher'} is better; bars: 95 % intervals over seeds; "
        "triangle up: better, down: worse, circle: no difference shown"
    )
    label = f"difference of {metric} to joint"
    return dot_chart(f"{task}: {metric} minus joint", dots, x_label=label, note=note, zero=True)


def _ranks(records: Sequence[Record]) -> Section:
    metrics = {task: TASKS[task].metrics[:1] for task in select.tasks(records)}
    ranks = {name: rank for name, rank in average_ranks(records, metrics).items() if rank.tasks}
    dots = [
        Dot(
            name if rank.complete else f"{name} *",
            rank.average,
            min(rank.columns.values()),
            max(rank.columns.values()),
        )
        for name, rank in ranks.items()
    ]
    note = "1 is best; bars: from the best to the worst rank over tasks; *: not on all tasks"
    chart = dot_chart("Average rank over tasks", dots, x_label="rank", note=note)
    return Section("Ranks", chart + _table(rank_table(records, metrics)))


def _table(table: Table) -> Markup:
    cells = [[(cell.text, cell.mark) for cell in row] for row in table.rows]
    note = Markup('<p class="note">{}</p>').format(" ".join(table.notes))
    return marked_table(table.title, table.columns, cells) + note


def _refusals(refused: Mapping[tuple[str, str], str]) -> Section:
    if not refused:
        return Section("Methods that cannot serve a task", Markup())
    columns = [
        Column("task", [task for task, _ in refused]),
        Column("method", [method for _, method in refused]),
        Column("reason", [*refused.values()]),
    ]
    table = plain_table("Refused by the method itself", columns)
    return Section("Methods that cannot serve a task", table)
