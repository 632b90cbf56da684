"""Lines as inline SVG in the colors of the page, with their values in words and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cggm.reports.frame import HEIGHT, WIDTH, Frame, limits
from cggm.reports.series import Values
from cggm.reports.tables import Column, number, plain_table

MOST_POINTS = 300
"""Points of a line, and dots behind it; longer ones are thinned evenly."""
GRAY = 7
EMPTY = Markup()
_TABLE_ROWS = 9


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: What it shows.
        x: Shape ``(N,)``.
        y: Shape ``(N,)``; gaps where NaN.
        color: 0 to 7, the last one gray.
        dots: Single values behind the line, shape ``(N,)``.
    """

    name: str
    x: Values
    y: Values
    color: int
    dots: Values | None = None


def legend(colors: Mapping[str, int]) -> Markup:
    """A legend for charts that share their lines.

    Args:
        colors: Name of a line to its color.
    """
    items = Markup().join(
        Markup(
            '<li><svg viewBox="0 0 32 10" aria-hidden="true"><path class="line k{0} d{1}" '
            'd="M0 5H32"/></svg>{2}</li>'
        ).format(color, _dash(color), name)
        for name, color in colors.items()
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    note: str = "",
    level: float | None = None,
    named: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Lines over a common axis; nothing where no line has a value.

    Args:
        title: What it shows.
        lines: At least one.
        x_label: Of the horizontal axis.
        note: A few words below the title.
        level: Where a dashed line marks a value of note.
        named: Whether a legend of its own says which line is which.
        y_range: Ends of the vertical axis, for charts that are compared; its own where ``None``.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return Markup()
    dots = [line.dots for line in lines if line.dots is not None]
    frame = Frame(
        limits([line.x for line in lines], margin=0.0),
        y_range or limits([line.y for line in lines], dots, also=level),
        whole=all(_whole(line.x) for line in lines),
    )
    parts = [frame.grid(x_label)]
    if level is not None:
        parts.append(frame.horizontal(level))
    parts += [_dots(frame, line) for line in lines] + [_path(frame, line) for line in lines]
    words = "; ".join(_course(line) for line in lines)
    picture = svg(f"{title}, by {x_label}: {words}.", Markup().join(parts))
    key = legend({line.name: line.color for line in lines}) if named else Markup()
    return figure(title, note, key + picture, _values(title, lines, x_label))


def _dash(color: int) -> int:
    return color % 4


def _path(frame: Frame, line: Line) -> Markup:
    known = np.isfinite(line.y)
    chosen = _thinned(np.flatnonzero(known))
    x, y = frame.px(line.x[chosen]), frame.py(line.y[chosen])
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    marks = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
    few = Markup('<path class="line k{}" style="stroke-width:6;stroke-linecap:round" d="{}"/>')
    return Markup('<path class="line k{} d{}" d="M{}"><title>{}</title></path>{}').format(
        line.color,
        _dash(line.color),
        points,
        line.name,
        few.format(line.color, marks) if len(chosen) <= 12 else "",
    )


def _dots(frame: Frame, line: Line) -> Markup:
    if line.dots is None:
        return Markup()
    low, high = frame.y
    shown = np.isfinite(line.dots) & (line.dots >= low) & (line.dots <= high)
    chosen = _thinned(np.flatnonzero(shown))
    pairs = zip(frame.px(line.x[chosen]), frame.py(line.dots[chosen]), strict=True)
    points = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in pairs)
    return Markup('<path class="dots k{}" d="{}"/>').format(line.color, points)


def _thinned(indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """At most :data:`MOST_POINTS`, evenly, the first and the last among them."""
    if len(indices) <= MOST_POINTS:
        return indices
    even: NDArray[np.intp] = np.linspace(0, len(indices) - 1, MOST_POINTS).round().astype(int)
    return indices[even]


def _course(line: Line) -> str:
    known = line.y[np.isfinite(line.y)]
    return f"{line.name} from {number(known[0])} to {number(known[-1])}"


def _values(title: str, lines: Sequence[Line], x_label: str) -> Markup:
    longest = max(lines, key=lambda line: len(line.x))
    rows = np.unique(np.linspace(0, len(longest.x) - 1, _TABLE_ROWS).round().astype(int))
    columns = [Column(x_label, longest.x[rows].tolist(), digits=0 if _whole(longest.x) else 3)]
    for line in lines:
        near = [int(np.abs(line.x - x).argmin()) for x in longest.x[rows]]
        columns.append(Column(line.name, line.y[near].tolist()))
    table = plain_table(title, columns)
    return Markup("<details><summary>Values</summary>{}</details>").format(table)


def _whole(x: Values) -> bool:
    return bool((x == np.round(x)).all())


def svg(words: str, body: Markup, height: float = HEIGHT) -> Markup:
    """A picture as wide as a chart, with what it shows in words."""
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, words, body
    )


def figure(title: str, note: str, picture: Markup, below: Markup = EMPTY) -> Markup:
    """A picture with its title and a note above it."""
    small = Markup("<small>{}</small>").format(note) if note else ""
    return Markup('<figure class="chart"><figcaption>{}{}</figcaption>{}{}</figure>').format(
        title, small, picture, below
    )
