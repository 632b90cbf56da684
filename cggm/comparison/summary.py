"""Everything that finished trainings come to: tables, figures, and a page that shows them."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from cggm.comparison import records as select
from cggm.comparison.directions import describe_agreement, labels_of, read_directions
from cggm.comparison.figures import (
    SweepPoint,
    plot_differences,
    plot_gradients,
    plot_ranks,
    plot_sweep,
)
from cggm.comparison.plan import SWEEP, SWEPT_LAM, SWEPT_RHO, TASKS, UNIMODAL, Plan, shown_metrics
from cggm.comparison.records import Record
from cggm.comparison.rendering import RENDERERS, Table, to_markdown
from cggm.comparison.report import write_report
from cggm.comparison.statistics import average_ranks, compare
from cggm.comparison.tables import rank_table, task_tables
from cggm.runs import machine, write_atomically

_SWEPT = {
    "rho": {rho: f"cggm:rho={rho}" for rho in SWEPT_RHO},
    "lambda": {0.1: "cggm", **{lam: f"cggm:lam={lam}" for lam in SWEPT_LAM}},
}


def summarize(
    output: Path,
    plan: Plan,
    records: Sequence[Record],
    refused: Mapping[tuple[str, str], str],
) -> Path:
    """Write ``tables/``, ``figures/``, ``comparison.md`` and ``report.html`` of a comparison.

    Args:
        output: Its folder.
        plan: What is compared; trainings of earlier plans in the same folder are shown as well, but
            settings of a sweep only in its figure unless the plan names them as methods.
        records: Finished trainings, in the order that tables have.
        refused: Reasons by task and method.

    Returns:
        The page.
    """
    for folder in ("tables", "figures"):
        (output / folder).mkdir(exist_ok=True)
    named = [r for r in records if r.method not in SWEEP or r.method in plan.methods]
    parts = [_head(records)]
    for task in select.tasks(named):
        tables = task_tables(named, task)
        parts += [_keep(output, f"{task}-{name}", table) for name, table in tables.items()]
        own = select.of_task(named, task)
        if len(select.methods(own)) > 1 and "joint" in select.methods(own):
            parts.append(_differences(output, own, task))
        parts += _sweep(output, select.of_task(records, task), task)
        parts += _gradients(output, own, task)
    parts += _ranks(output, named) if len(select.methods(named)) > 1 else []
    parts += [_refusals(refused)] if refused else []
    page = output / "comparison.md"
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    write_report(output, named, refused)
    return page


def _head(records: Sequence[Record]) -> str:
    simulated = " on SIMULATED data" if _simulated(records) else ""
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    lines = [
        f"# Comparison of balancing methods{simulated}",
        f"    {shlex.join(['python', *sys.argv])}",
        f"{len(records)} trainings, seeds {seeds or 'none'}, "
        f"{datetime.now():%Y-%m-%d}, {machine()}.",
        "All methods have the same epochs, the same order of the data and the same initial weights "
        "per seed. Settings are those of `configs/methods`, published or default ones, where a "
        "name does not say otherwise; none was tuned here. What a method does beside the training "
        "(teachers, estimates) is in its time.",
    ]
    return "\n\n".join(lines)


def _differences(output: Path, records: Sequence[Record], task: str) -> str:
    """A figure of the methods on all modalities; single ones are far off and would stretch it."""
    alone = {f"{UNIMODAL}_{name}" for name in TASKS[task].modalities}
    records = [record for record in records if record.method not in alone]
    file = output / "figures" / f"{task}-differences.png"
    plot_differences(records, task, shown_metrics(task)[0], file)
    return _image(file)


def _sweep(output: Path, records: Sequence[Record], task: str) -> list[str]:
    metric = shown_metrics(task)[0]
    found = compare(records, metric)
    points = [
        SweepPoint(setting, value, found[method])
        for setting, by_value in _SWEPT.items()
        for value, method in by_value.items()
        if method in found
    ]
    if not any(method in SWEEP for method in found):
        return []
    file = output / "figures" / f"{task}-sweep.png"
    plot_sweep(points, file, metric=metric, simulated=_simulated(records))
    return [_image(file)]


def _gradients(output: Path, records: Sequence[Record], task: str) -> list[str]:
    vectors = read_directions(records, output)
    if not vectors:
        return []
    file = output / "figures" / f"{task}-gradients.png"
    rows = {name: np.concatenate(list(own.values())) for name, own in vectors.items()}
    labels = {name: labels_of(own) for name, own in vectors.items()}
    plot_gradients(rows, labels, file, 0, simulated=_simulated(records))
    return [_image(file), describe_agreement(vectors, task)]


def _ranks(output: Path, records: Sequence[Record]) -> list[str]:
    metrics = {task: shown_metrics(task)[:1] for task in select.tasks(records)}
    file = output / "figures" / "ranks.png"
    plot_ranks(average_ranks(records, metrics), file, simulated=_simulated(records))
    return [_keep(output, "ranks", rank_table(records, metrics)), _image(file)]


def _keep(output: Path, name: str, table: Table) -> str:
    for suffix, render in RENDERERS.items():
        write_atomically(output / "tables" / f"{name}.{suffix}", render(table).encode())
    return to_markdown(table).strip()


def _refusals(refused: Mapping[tuple[str, str], str]) -> str:
    lines = [f"- {task}, {method}: {reason}" for (task, method), reason in refused.items()]
    return "\n".join(["Methods that cannot serve a task:", "", *lines])


def _image(file: Path) -> str:
    return f"![{file.stem.replace('-', ', ')}](figures/{file.name})"


def _simulated(records: Sequence[Record]) -> bool:
    return any(record.simulated for record in records)
