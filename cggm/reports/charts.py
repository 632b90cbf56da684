"""Charts in a page: the picture, its title, its legend, and its values as a table."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from cggm.display import GRAY, Chart, IntervalChart, Line, LineChart, svg
from cggm.reports.tables import Column, plain_table

_TABLE_ROWS = 9
_SHAPES = {
    "better": (0, "M16 0 21.5 10H10.5Z"),
    "no difference": (GRAY, "M11 5a5 5 0 1 0 10 0a5 5 0 1 0-10 0"),
    "worse": (1, "M16 10 10.5 0H21.5Z"),
    "not decided": (GRAY, "M16 0 21 5 16 10 11 5Z"),
}


def legend(lines: Sequence[Line]) -> Markup:
    """A legend for charts that share their lines.

    Args:
        lines: One for each name that occurs.
    """
    items = Markup().join(
        Markup(
            '<li><svg viewBox="0 0 32 10" aria-hidden="true"><path class="line k{0} d{1}" '
            'd="M0 5H32"/></svg>{2}</li>'
        ).format(line.color, line.pattern, line.name)
        for line in {line.name: line for line in lines}.values()
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def figure(chart: Chart) -> Markup:
    """A chart with its title and note above it, and its values below; nothing without any.

    Args:
        chart: What to show.
    """
    if isinstance(chart, LineChart) and not chart.known:
        return Markup()
    small = Markup("<small>{}</small>").format(chart.note) if chart.note else ""
    key = values = Markup()
    if isinstance(chart, LineChart):
        key = legend(chart.known) if chart.named else Markup()
        values = _values(chart)
    if isinstance(chart, IntervalChart):
        key = _verdicts(chart)
    picture = Markup(svg(chart))
    return Markup('<figure class="chart"><figcaption>{}{}</figcaption>{}{}{}</figure>').format(
        chart.title, small, key, picture, values
    )


def figures(charts: Sequence[Chart]) -> Markup:
    """Charts side by side where the page is wide enough."""
    shown = Markup().join(map(figure, charts))
    return Markup('<div class="charts">{}</div>').format(shown) if shown else Markup()


def _verdicts(chart: IntervalChart) -> Markup:
    """A legend of the shapes that say what may be said of a difference; empty without any."""
    found = {interval.kind for interval in chart.intervals}
    items = Markup().join(
        Markup(
            '<li><svg viewBox="0 0 32 10" aria-hidden="true"><path style="fill:var(--c{})" d="{}"/>'
            "</svg>{}</li>"
        ).format(color, shape, kind)
        for kind, (color, shape) in _SHAPES.items()
        if kind in found
    )
    return Markup('<ul class="legend">{}</ul>').format(items) if items else Markup()


def _values(chart: LineChart) -> Markup:
    """Values of all lines at a few places, in a table that opens."""
    longest = max(chart.known, key=lambda line: len(line.x))
    rows = np.unique(np.linspace(0, len(longest.x) - 1, _TABLE_ROWS).round().astype(int))
    columns = [Column(chart.x_label, longest.x[rows].tolist(), digits=0 if chart.counts else 3)]
    for line in chart.known:
        near = [int(np.abs(line.x - x).argmin()) for x in longest.x[rows]]
        columns.append(Column(line.name, line.y[near].tolist()))
    table = plain_table(chart.title, columns)
    return Markup("<details><summary>Values</summary>{}</details>").format(table)
