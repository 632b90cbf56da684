"""The report of a comparison: tables, intervals, ranks, and curves side by side."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from cggm.comparison import records as select
from cggm.comparison.figures import difference_chart, rank_chart, sweep_charts
from cggm.comparison.missing import task_tables
from cggm.comparison.plan import SWEEP
from cggm.comparison.records import FinishedRun, RecordStore
from cggm.comparison.statistics import average_ranks, can_be_ranked
from cggm.comparison.tables import known_tasks, rank_table, verdict_table
from cggm.comparison.tuning import tuning_table
from cggm.display import GRAY, Line, LineChart, Values, limits
from cggm.reports import (
    NOTHING,
    Column,
    Section,
    Task,
    figure,
    figures,
    legend,
    marked_table,
    plain_table,
    write_page,
)
from cggm.runs import (
    Log,
    RunFolder,
    balance_charts,
    column,
    find_metric,
    read_jsonl,
)

Curve = tuple[Values, Values]


def report_comparison(
    output: Path,
    records: Sequence[FinishedRun],
    refused: Mapping[tuple[str, str], str],
    table: Mapping[str, Task],
    *,
    swept: Sequence[FinishedRun] = (),
) -> Path:
    """Write ``report.html`` of a comparison.

    Args:
        output: Its folder.
        records: Finished trainings, in the order that tables have.
        refused: Reasons by task and method.
        table: Tasks by name, at least those of the trainings.
        swept: Trainings with other settings of CGGM, which a figure shows, and what they are
            compared with.

    Raises:
        UserError: If a task or a metric is unknown.
    """
    tasks = known_tasks(records, table)
    methods = select.methods(records)
    simulated = select.tasks(record for record in records if record.simulated)
    seeds = sorted({record.seed for record in records})
    return write_page(
        output / "report.html",
        title=f"Comparison of balancing methods on {_listed(t.name for t in tasks) or 'no task'}",
        lead=f"{len(records)} trainings: {len(methods)} methods, {_seeds(seeds)}. "
        "All methods have the same epochs, data order and initial weights per seed.",
        sections=[
            _verdicts(records, tasks),
            *(_task(output, records, swept, task) for task in tasks),
            *([_ranks(records, tasks)] if can_be_ranked(records) else []),
            _tuning(output),
            _refusals(refused),
        ],
        simulated=f"Data of {_listed(simulated)} are simulated: {NOTHING}" if simulated else "",
    )


def report_folder(output: Path, table: Mapping[str, Task]) -> Path:
    """Write ``report.html`` of a comparison from what is in its folder.

    Args:
        output: The folder.
        table: Tasks by name, at least those of its trainings.

    Raises:
        UserError: If a file in it is damaged, or a task or a metric is unknown.
    """
    store = RecordStore(output)
    every = store.records()
    records = [record for record in every if record.method not in SWEEP]
    return report_comparison(output, records, store.refused(), table, swept=every)


def _seeds(found: Sequence[int]) -> str:
    return f"seed{'' if len(found) == 1 else 's'} {_listed(found) or 'none'}"


def _listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))


def _verdicts(records: Sequence[FinishedRun], tasks: Sequence[Task]) -> Section:
    """What may be said, before all that it rests on."""
    table = verdict_table(records, tasks)
    return Section("Verdicts", marked_table(table) if table else Markup())


def _ranks(records: Sequence[FinishedRun], tasks: Sequence[Task]) -> Section:
    metrics = {task.name: task.metrics[:1] for task in tasks}
    chart = rank_chart(average_ranks(records, metrics))
    return Section("Ranks", figure(chart) + marked_table(rank_table(records, metrics)))


def _task(
    output: Path, records: Sequence[FinishedRun], swept: Sequence[FinishedRun], task: Task
) -> Section:
    own = select.of_task(records, task.name)
    parts = [
        figure(difference_chart(own, task)),
        *map(marked_table, task_tables(records, task).values()),
        figures(sweep_charts(swept, task)),
        curves(output, own, task.metrics[0]),
    ]
    return Section(task.name, Markup().join(parts))


def curves(output: Path, records: Sequence[FinishedRun], metric: str) -> Markup:
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


def _validation(output: Path, record: FinishedRun, metric: str) -> Curve | None:
    rows = _log(RunFolder(output / record.path).metrics)
    rows = [row for row in rows if row.get(f"val_{metric}") is not None]
    return (column(rows, "epoch"), column(rows, f"val_{metric}")) if rows else None


def _scores(output: Path, record: FinishedRun) -> Sequence[Line]:
    charts = balance_charts(_log(RunFolder(output / record.path).balance))
    lines = charts["score"].lines if "score" in charts else []
    return [Line(line.name, line.x, line.y, line.color) for line in lines]  # without the dots


def _log(path: Path) -> Log:
    return read_jsonl(path) if path.exists() else []


def _validation_charts(found: Mapping[str, Sequence[Curve]], metric: str) -> Markup:
    """Each method's seeds in color over the mean of joint training in gray."""
    found = {name: own for name, own in found.items() if own}
    if not found:
        return Markup()
    bounds = limits([y for own in found.values() for _, y in own])
    joint = [Line("joint, mean", *_mean(found["joint"]), GRAY)] if "joint" in found else []
    charts = []
    for name, own in found.items():
        lines = [Line(f"seed {i}", x, y, 0) for i, (x, y) in enumerate(own)]
        behind = joint if name != "joint" else []
        charts.append(LineChart(name, [*behind, *lines], "epoch", y_range=bounds))
    head = f"Validation of every seed: {find_metric(metric).heading}"
    note = "Gray, dashed: the mean of joint training."
    return Markup('<h3>{}</h3><p class="note">{}</p>{}').format(head, note, figures(charts))


def _score_charts(scores: Mapping[str, Sequence[Line]]) -> Markup:
    scores = {name: lines for name, lines in scores.items() if lines}
    if not scores:
        return Markup()
    every = [line for lines in scores.values() for line in lines]
    charts = [LineChart(name, own, "step") for name, own in scores.items()]
    note = "Each axis is its own: methods score heads by the task's metric, confidence or loss."
    return Markup('<h3>Scores of the heads, first seed</h3><p class="note">{}</p>{}{}').format(
        note, legend(every), figures(charts)
    )


def _mean(found: Sequence[Curve]) -> Curve:
    """Mean over the seeds that went as far as the shortest one."""
    shortest = min(len(x) for x, _ in found)
    return found[0][0][:shortest], np.mean([y[:shortest] for _, y in found], 0)


def _tuning(output: Path) -> Section:
    table = tuning_table(output)
    return Section("Tuning", marked_table(table) if table else Markup())


def _refusals(refused: Mapping[tuple[str, str], str]) -> Section:
    title = "Methods that cannot serve a task"
    if not refused:
        return Section(title, Markup())
    columns = [
        Column("task", [task for task, _ in refused]),
        Column("method", [method for _, method in refused]),
        Column("reason", [*refused.values()]),
    ]
    return Section(title, plain_table("Refused by the method itself", columns))
