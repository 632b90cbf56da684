"""Curves of a comparison's trainings side by side, on common axes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from cggm.comparison import records as select
from cggm.comparison.records import Record
from cggm.reports.charts import GRAY, Line, legend, line_chart
from cggm.reports.frame import limits
from cggm.reports.series import Records, Values, by_modality, column
from cggm.runs.curves import running_mean
from cggm.runs.folder import RunFolder
from cggm.runs.logs import read_jsonl

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
