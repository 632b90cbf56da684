"""The report of a comparison: tables, intervals, ranks, and curves side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from cggm.comparison import records as select
from cggm.comparison.plan import TASKS, shown_metrics
from cggm.comparison.records import Record
from cggm.comparison.rendering import Table
from cggm.comparison.statistics import average_ranks, compare
from cggm.comparison.tables import rank_table, task_tables
from cggm.reports import (
    GRAY,
    NOTHING,
    Column,
    Dot,
    Line,
    Records,
    Section,
    Values,
    by_modality,
    column,
    dot_chart,
    legend,
    limits,
    line_chart,
    marked_table,
    plain_table,
    write_page,
)
from cggm.runs import RunFolder, find_metric, read_jsonl, running_mean

Curve = tuple[Values, Values]


def curves(output: Path, records: Sequence[Record], metric: str) -> Markup:
    """Validation metric of every method, and scores of its heads, a chart each.

    Args:
        output: Folder of the comparison.
        records: Of one task.
        metric: A validation metric.
    """
    found = {name: select.of_method(records, name) for name in select.methods(records)}
    validation = {
        name: [c for run in own if (c := _validation(output, run, metric))]
        for name, own in found.items()
    }
    scores = {name: _scores(output, own[0]) for name, own in found.items()}
    return _validation_charts(validation, metric) + _score_charts(scores)


def _validation(output: Path, record: Record, metric: str) -> Curve | None:
    rows = _log(RunFolder(output / record.path).metrics)
    rows = [row for row in rows if row.get(f"val_{metric}") is not None]
    return (column(rows, "epoch"), column(rows, f"val_{metric}")) if rows else None


def _scores(output: Path, record: Record) -> dict[str, Line]:
    rows = _log(RunFolder(output / record.path).balance)
    x, window = column(rows, "iteration"), len(rows) // 25
    return {
        name: Line(name, x, running_mean(values, window), i % GRAY)
        for i, (name, values) in enumerate(by_modality(rows, "score").items())
    }


def _log(path: Path) -> Records:
    return read_jsonl(path) if path.exists() else []


def _validation_charts(curves: dict[str, list[Curve]], metric: str) -> Markup:
    """Each method's seeds in color over the mean of joint training in gray."""
    curves = {name: own for name, own in curves.items() if own}
    if not curves:
        return Markup()
    bounds = limits([y for own in curves.values() for _, y in own])
    joint = _mean(curves["joint"]) if "joint" in curves else None
    charts = []
    for name, own in curves.items():
        lines = [Line(f"seed {i}", x, y, 0) for i, (x, y) in enumerate(own)]
        lines += [Line("joint, mean", *joint, GRAY)] if joint and name != "joint" else []
        charts.append(line_chart(name, lines, x_label="epoch", y_range=bounds))
    head = f"Validation {metric} of every seed"
    return _side_by_side(head, "Gray: the mean of joint training.", Markup().join(charts))


def _score_charts(scores: dict[str, dict[str, Line]]) -> Markup:
    scores = {name: lines for name, lines in scores.items() if lines}
    if not scores:
        return Markup()
    bounds = limits([line.y for lines in scores.values() for line in lines.values()])
    charts = [
        line_chart(name, [*lines.values()], x_label="step", y_range=bounds)
        for name, lines in scores.items()
    ]
    colors = {n: line.color for lines in scores.values() for n, line in lines.items()}
    key = legend(colors)
    return _side_by_side("Scores of the heads, first seed", "", key, Markup().join(charts))


def _mean(curves: Sequence[Curve]) -> Curve:
    """Mean over the seeds that went as far as the shortest one."""
    shortest = min(len(x) for x, _ in curves)
    return curves[0][0][:shortest], np.mean([y[:shortest] for _, y in curves], 0)


def _side_by_side(title: str, note: str, *parts: Markup) -> Markup:
    *above, charts = parts
    return Markup('<h3>{}</h3><p class="note">{}</p>{}<div class="charts">{}</div>').format(
        title, note, Markup().join(above), charts
    )


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
        curves(output, own, shown_metrics(task)[0]),
    ]
    return Section(task, Markup().join(parts))


def _differences(records: Sequence[Record], task: str) -> Markup:
    metric = shown_metrics(task)[0]
    alone = {f"unimodal_{name}" for name in TASKS[task].modalities}
    found = {n: d for n, d in compare(records, metric).items() if d.n and n not in alone}
    if not found:
        return Markup()
    sign = 1 if find_metric(metric).lower_is_better else -1
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
    metrics = {task: shown_metrics(task)[:1] for task in select.tasks(records)}
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
