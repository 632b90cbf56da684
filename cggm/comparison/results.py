"""Results of a comparison as files: tables, figures, and the pages that show them."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cggm.comparison import records as select
from cggm.comparison.figures import difference_chart, rank_chart, sweep_charts
from cggm.comparison.gradients import describe_agreement, gradient_chart, read_gradients
from cggm.comparison.missing import task_tables
from cggm.comparison.plan import SWEEP, Plan
from cggm.comparison.records import FinishedRun
from cggm.comparison.report import report_comparison
from cggm.comparison.statistics import average_ranks, can_be_ranked
from cggm.comparison.tables import (
    known_tasks,
    rank_table,
    simulated_suffix,
    verdict_table,
)
from cggm.comparison.tuning import tuning_table
from cggm.display import RENDERERS, Chart, Table, picture_file, to_markdown
from cggm.reports import Task
from cggm.runs import machine, write_atomically

_AS_PUBLISHED = (
    "Settings are those of `configs/methods`, published or default ones, where a name does not say "
    "otherwise; none was tuned here."
)
_TUNED = (
    "Settings were tuned on the validation split by equally many trials for each method, see the "
    "table on tuning."
)


def write_results(
    output: Path,
    plan: Plan,
    records: Sequence[FinishedRun],
    refused: Mapping[tuple[str, str], str],
    table: Mapping[str, Task],
    *,
    kinds: Sequence[str] = ("png",),
) -> tuple[Path, Path]:
    """Write ``tables/``, ``figures/``, ``comparison.md`` and ``report.html`` of a comparison.

    Args:
        output: Its folder.
        plan: What is compared; trainings of earlier plans in the same folder are shown as well, but
            settings of a sweep only in its figure unless the plan names them as methods.
        records: Finished trainings, in the order that tables have.
        refused: Reasons by task and method.
        table: Tasks by name, at least those of the trainings.
        kinds: Formats of the figures besides PNG, such as ``pdf``.

    Returns:
        ``comparison.md`` and ``report.html``.

    Raises:
        UserError: If a task or a metric is unknown.
    """
    for folder in ("tables", "figures"):
        (output / folder).mkdir(exist_ok=True)
    named = [r for r in records if r.method not in SWEEP or r.method in plan.methods]
    tasks = known_tasks(named, table)
    tuning = tuning_table(output)
    parts = [_head(records, tuned=tuning is not None)]
    if verdicts := verdict_table(named, tasks):
        parts.append(_keep_table(output, "verdicts", verdicts))
    for task in tasks:
        parts += _task(output, task, named, records, kinds)
    parts += _ranks(output, named, tasks, kinds) if can_be_ranked(named) else []
    parts += [] if tuning is None else [_keep_table(output, "tuning", tuning)]
    parts += [_refusals(refused)] if refused else []
    page = output / "comparison.md"
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    return page, report_comparison(output, named, refused, table, swept=records)


def _head(records: Sequence[FinishedRun], *, tuned: bool) -> str:
    simulated = " on SIMULATED data" if simulated_suffix(records) else ""
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    lines = [
        f"# Comparison of balancing methods{simulated}",
        f"    {shlex.join(['python', *sys.argv])}",
        f"{len(records)} trainings, seeds {seeds or 'none'}, "
        f"{datetime.now():%Y-%m-%d}, {machine()}.",
        "All methods have the same epochs, the same order of the data and the same initial weights "
        f"per seed. {_TUNED if tuned else _AS_PUBLISHED} What a method does beside the training "
        "(teachers, estimates) is in its time.",
    ]
    return "\n\n".join(lines)


def _task(
    output: Path,
    task: Task,
    named: Sequence[FinishedRun],
    records: Sequence[FinishedRun],
    kinds: Sequence[str],
) -> list[str]:
    """Tables and figures of one task; the sweep is of all records, the rest of those named."""
    parts = [
        _keep_table(output, f"{task.name}-{name}", table)
        for name, table in task_tables(named, task).items()
    ]
    own = select.of_task(named, task.name)
    differences = difference_chart(own, task)
    if differences.intervals:
        parts.append(_keep_figure(output, f"{task.name}-differences", [differences], kinds))
    if sweep := sweep_charts(records, task):
        parts.append(_keep_figure(output, f"{task.name}-sweep", sweep, kinds))
    if gradients := read_gradients(own, output):
        suffix = simulated_suffix(own)
        charts = [gradient_chart(name + suffix, found) for name, found in gradients.items()]
        parts.append(_keep_figure(output, f"{task.name}-gradients", charts, kinds))
        parts.append(describe_agreement(gradients, task.name))
    return parts


def _ranks(
    output: Path, records: Sequence[FinishedRun], tasks: Sequence[Task], kinds: Sequence[str]
) -> list[str]:
    metrics = {task.name: task.metrics[:1] for task in tasks}
    simulated = bool(simulated_suffix(records))
    chart = rank_chart(average_ranks(records, metrics), simulated=simulated)
    table = rank_table(records, metrics)
    return [_keep_table(output, "ranks", table), _keep_figure(output, "ranks", [chart], kinds)]


def _keep_table(output: Path, name: str, table: Table) -> str:
    """Write a table in every format; returns its Markdown."""
    for suffix, render in RENDERERS.items():
        write_atomically(output / "tables" / f"{name}.{suffix}", render(table).encode())
    return to_markdown(table).strip()


def _keep_figure(output: Path, name: str, charts: Sequence[Chart], kinds: Sequence[str]) -> str:
    """Write a figure in every format; returns the Markdown that shows it."""
    for kind in dict.fromkeys(("png", *kinds)):
        file = output / "figures" / f"{name}.{kind}"
        write_atomically(file, picture_file(charts, kind=kind))
    return f"![{name.replace('-', ', ')}](figures/{name}.png)"


def _refusals(refused: Mapping[tuple[str, str], str]) -> str:
    lines = [f"- {task}, {method}: {reason}" for (task, method), reason in refused.items()]
    return "\n".join(["Methods that cannot serve a task:", "", *lines])
