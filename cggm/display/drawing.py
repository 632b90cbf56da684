"""Drawing of charts with matplotlib: the one place that knows shapes, colors and distances."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cggm.display.charts import (
    GRAY,
    INK,
    PALETTE,
    Chart,
    Interval,
    IntervalChart,
    Line,
    LineChart,
    ScatterChart,
    Verdict,
    limits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLORS = (*PALETTE, "#777777", "#333333")
"""Hexadecimal colors of the palette, of :data:`GRAY` and of :data:`INK`."""
FAINT, GRID, PAGE = "#57606a", "#e4e7eb", "#ffffff"
"""Colors of labels, of lines behind the values, and of what is behind all."""
WIDTH, HEIGHT = 360, 210
"""Size of a chart in points; near to its pixels on a phone, so that text keeps its size there."""
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": COLORS[INK],
    "axes.labelcolor": FAINT,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "lines.solid_joinstyle": "round",
}
"""Settings of matplotlib for all charts."""

_DASHES: tuple[Any, ...] = ("-", (0, (3.3, 1.7)), (0, (1.1, 1.7)), (0, (4.4, 1.7, 1.1, 1.7)))
_MOST_POINTS = 300  # of a line, and dots behind it; longer ones are thinned evenly
_MOST_SCATTERED = 1500
_FEW = 12  # points that are marked on their line
_VERDICTS: dict[Verdict | None, tuple[str, int]] = {
    "better": ("^", 0),
    "no difference": ("o", GRAY),
    "worse": ("v", 1),
    "not decided": ("D", GRAY),
    None: ("o", 2),  # neither of the colors that judge
}
_ROW = 22  # points from one interval to the next


def height_of(chart: Chart) -> float:
    """Points that a chart needs from top to bottom."""
    if isinstance(chart, IntervalChart) and not chart.upright:
        return _ROW * max(1, len(chart.intervals)) + 44
    if isinstance(chart, ScatterChart):
        return WIDTH
    return HEIGHT


def draw(chart: Chart, axes: "Axes", *, longest_name: int | None = None) -> None:
    """Draw a chart, without its title.

    Args:
        chart: What to draw.
        axes: Where, empty.
        longest_name: Characters of a row's name beyond which it is cut; never where ``None``.
    """
    if isinstance(chart, LineChart):
        _draw_lines(chart, axes)
    elif isinstance(chart, IntervalChart):
        _draw_intervals(chart, axes, longest_name)
    else:
        _draw_points(chart, axes)


def _draw_lines(chart: LineChart, axes: "Axes") -> None:
    low, high = chart.y_limits
    if chart.level is not None:
        axes.axhline(chart.level, color=COLORS[GRAY], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for line in chart.known:
        _draw_dots(axes, line, (low, high))
    for line in chart.known:
        _draw_line(axes, line)
    axes.set_ylim(low, high)
    axes.set_xlim(*limits([line.x for line in chart.known], margin=0.0))
    axes.set_xlabel(chart.x_label)
    _set_ticks(axes, whole=chart.counts)


def _draw_intervals(chart: IntervalChart, axes: "Axes", longest_name: int | None) -> None:
    upright, ends = chart.upright, chart.limits
    if chart.zero:
        mark = axes.axhline if upright else axes.axvline
        mark(0.0, color=COLORS[GRAY], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    rows = [float(i) if d.position is None else d.position for i, d in enumerate(chart.intervals)]
    if upright:
        axes.plot(rows, [d.value for d in chart.intervals], color=COLORS[GRAY], alpha=0.5, zorder=1)
    for row, interval in zip(rows, chart.intervals, strict=True):
        _draw_interval(axes, row, interval, ends, upright=upright)
    if upright:
        axes.set_ylim(*ends)
        axes.set(xlabel=chart.position_label, ylabel=textwrap.fill(chart.label, 30))
    else:
        names = [_cut(interval.name, longest_name) for interval in chart.intervals]
        axes.set_yticks(rows, names, color=COLORS[INK])
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=ends, xlabel=chart.label)
        axes.grid(axis="y", visible=False)
    _set_ticks(axes, rows=not upright)


def _draw_points(chart: ScatterChart, axes: "Axes") -> None:
    for cloud in chart.clouds:
        some = slice(None, None, -(-len(cloud.x) // _MOST_SCATTERED) or 1)
        axes.plot(
            cloud.x[some],
            cloud.y[some],
            linestyle="",
            marker="x" if cloud.crossed else "o",
            color=COLORS[cloud.color],
            markersize=4,
            markeredgewidth=1 if cloud.crossed else 0,
            alpha=0.6 if chart.diagonal else 1.0,
        )
    if chart.diagonal:
        both = limits([v for cloud in chart.clouds for v in (cloud.x, cloud.y)])
        axes.plot(both, both, color=COLORS[GRAY], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set(xlim=both, ylim=both)
    if chart.x_label:
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        _set_ticks(axes)
    else:
        axes.set(xticks=[], yticks=[])


def line_handles(lines: Sequence[Line]) -> list["Line2D"]:
    """Entries of a legend, one for each name of a line."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=COLORS[line.color], ls=_DASHES[line.pattern], lw=1.8, label=name)
        for name, line in {line.name: line for line in lines}.items()
    ]


def verdict_handles(charts: Sequence[IntervalChart]) -> list["Line2D"]:
    """Entries of a legend for the verdicts that occur."""
    from matplotlib.lines import Line2D

    found = {interval.kind for chart in charts for interval in chart.intervals}
    return [
        Line2D([], [], color=COLORS[color], marker=marker, label=kind)
        for kind, (marker, color) in _VERDICTS.items()
        if kind in found and kind is not None
    ]


def cloud_handles(charts: Sequence[ScatterChart]) -> list["Line2D"]:
    """Entries of a legend for the kinds of points, where there are several."""
    from matplotlib.lines import Line2D

    clouds = {cloud.name: cloud for chart in charts for cloud in chart.clouds}
    return [
        Line2D([], [], ls="", color=COLORS[c.color], marker="x" if c.crossed else "o", label=name)
        for name, c in clouds.items()
        if len(clouds) > 1
    ]


def _draw_line(axes: "Axes", line: Line) -> None:
    known = np.flatnonzero(np.isfinite(line.y))
    shown = _thinned(known)
    axes.plot(
        line.x[shown],
        line.y[shown],
        color=COLORS[line.color],
        linestyle=_DASHES[line.pattern],
        linewidth=1.8,
        marker="o" if len(known) <= _FEW else "",
        markersize=5,
        markeredgewidth=0,
        gid=f"line {line.name}",
        clip_on=False,
    )


def _draw_dots(axes: "Axes", line: Line, ends: tuple[float, float]) -> None:
    if line.dots is None:
        return
    inside = np.isfinite(line.dots) & (line.dots >= ends[0]) & (line.dots <= ends[1])
    shown = _thinned(np.flatnonzero(inside))
    axes.plot(
        line.x[shown],
        line.dots[shown],
        linestyle="",
        marker="o",
        color=COLORS[line.color],
        markersize=5 if len(line.x) <= _FEW else 2.6,
        markeredgewidth=0,
        alpha=0.45,
    )


def _draw_interval(
    axes: "Axes", row: float, interval: Interval, ends: tuple[float, float], *, upright: bool
) -> None:
    """A bar that ends where the axis does, and a dot."""
    marker, color = _VERDICTS[interval.kind]
    low, high = np.clip([interval.low, interval.high], *ends)
    bar, dot = ((low, high), (row, row)), (interval.value, row)
    if upright:
        bar, dot = (bar[1], bar[0]), (dot[1], dot[0])
    axes.plot(*bar, color=COLORS[color], linewidth=1.8, solid_capstyle="butt", zorder=2)
    axes.plot(
        *dot,
        marker=marker,
        color=COLORS[color],
        markerfacecolor=PAGE if interval.hollow else COLORS[color],
        markersize=7,
        zorder=3,
        gid=f"row {interval.name}",
        clip_on=False,
    )


def _set_ticks(axes: "Axes", *, whole: bool = False, rows: bool = False) -> None:
    """A few round numbers on the axes of values, written short."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, *(() if rows else (axes.yaxis,))):
        axis.set_major_locator(
            MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole and axis is axes.xaxis)
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def tick_text(value: float) -> str:
    """A tick's label, short for large and small numbers."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _thinned(indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most :data:`_MOST_POINTS`, evenly, the first and the last among them."""
    if len(indices) <= _MOST_POINTS:
        return indices
    even: NDArray[np.intp] = np.linspace(0, len(indices) - 1, _MOST_POINTS).round().astype(int)
    return indices[even]


def _cut(name: str, longest: int | None) -> str:
    if longest is None or len(name) <= longest:
        return name
    return f"{name[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
