"""Charts in a page: the picture, its title, its legend, and its values as a table."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from cggm.display import Chart, Line, LineChart, svg
from cggm.reports.tables import Column, plain_table

_TABLE_ROWS = 9


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
    picture = Markup(svg(chart))
    return Markup('<figure class="chart"><figcaption>{}{}</figcaption>{}{}{}</figure>').format(
        chart.title, small, key, picture, values
    )


def figures(charts: Sequence[Chart]) -> Markup:
    """Charts side by side where the page is wide enough."""
    return Markup('<div class="charts">{}</div>').format(Markup().join(map(figure, charts)))


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
