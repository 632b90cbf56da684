"""Lines as inline SVG in the colors of the page, with their values in words and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cggm.reports.run import Values
from cggm.reports.tables import Column, number, plain_table

WIDTH, HEIGHT = 360, 210
"""Of a chart's coordinates, near to its pixels on a phone, so that text has its own size there."""
_TOP, _RIGHT, _BOTTOM = 8, 8, 36


def limits(
    lines: Sequence[Values],
    dots: Sequence[Values] = (),
    *,
    also: float | None = None,
    margin: float = 0.05,
) -> tuple[float, float]:
    """Ends of an axis: all of the lines, and of the dots what does not squeeze them.

    Args:
        lines: Finite values or NaN.
        dots: Likewise.
        also: A value that must be seen as well.
        margin: Share of the length that is added at both ends.
    """
    known = np.concatenate([v[np.isfinite(v)] for v in lines])
    ends = [float(known.min()), float(known.max()), *([] if also is None else [also])]
    low, high = min(ends), max(ends)
    span = high - low or abs(high) or 1.0
    behind = np.concatenate([v[np.isfinite(v)] for v in dots] or [np.array([])])
    if behind.size:
        first, last = np.percentile(behind, [1, 99]).tolist()
        low, high = min(low, max(first, low - span)), max(high, min(last, high + span))
    room = margin * (high - low or span)
    return (low - room, high + room) if high > low else (low - span / 2, high + span / 2)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within two limits, `most` of them or fewer.

    Args:
        low: Lower limit.
        high: Upper limit, larger.
        most: How many.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, short for large and small numbers."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Frame:
    """Maps values to a chart's coordinates.

    Args:
        x: Ends of the horizontal axis.
        y: Ends of the vertical axis.
        height: Of the chart.
        left: Width of what stands beside the vertical axis.
        whole: Whether the horizontal axis counts, such as epochs.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = HEIGHT
    left: float = 46
    whole: bool = False

    def px(self, x: Values) -> Values:
        """Horizontal coordinates."""
        low, high = self.x
        placed: Values = self.left + (x - low) / (high - low) * (WIDTH - _RIGHT - self.left)
        return placed

    def py(self, y: Values) -> Values:
        """Vertical coordinates, from the top down."""
        low, high = self.y
        placed: Values = _TOP + (high - y) / (high - low) * (self.height - _TOP - _BOTTOM)
        return placed

    def grid(self, x_label: str, y_label: str = "") -> Markup:
        """Lines and labels of both axes."""
        found = ticks(*self.y)
        rows = Markup().join(
            Markup(
                '<path class="grid" d="M{0:.0f} {1:.1f}H{2}"/>'
                '<text x="{3:.0f}" y="{4:.1f}" text-anchor="end">{5}</text>'
            ).format(self.left, y, WIDTH - _RIGHT, self.left - 5, y + 4, tick_text(value))
            for value, y in zip(found, self.py(np.array(found)), strict=True)
        )
        side = Markup(
            '<text x="10" y="{0:.0f}" text-anchor="middle" transform="rotate(-90 10 {0:.0f})">{1}'
            "</text>"
        ).format(self.height / 2, y_label)
        return rows + self.vertical_grid(x_label) + (side if y_label else Markup())

    def vertical_grid(self, x_label: str) -> Markup:
        """Lines and labels of the horizontal axis."""
        bottom = self.height - _BOTTOM
        found = [x for x in ticks(*self.x) if not self.whole or x == round(x)]
        columns = Markup().join(
            Markup(
                '<path class="grid" d="M{0:.1f} {1}V{2:.0f}"/>'
                '<text x="{0:.1f}" y="{3:.0f}" text-anchor="middle">{4}</text>'
            ).format(x, _TOP, bottom, bottom + 14, tick_text(value))
            for value, x in zip(found, self.px(np.array(found)), strict=True)
        )
        label = Markup('<text x="{:.0f}" y="{:.0f}" text-anchor="middle">{}</text>').format(
            (self.left + WIDTH - _RIGHT) / 2, self.height - 5, x_label
        )
        return columns + label

    def horizontal(self, value: float) -> Markup:
        """A dashed line at a value of the vertical axis."""
        y = float(self.py(np.array([value]))[0])
        return Markup('<path class="level" d="M{:.0f} {:.1f}H{}"/>').format(
            self.left, y, WIDTH - _RIGHT
        )

    def vertical(self, value: float) -> Markup:
        """A dashed line at a value of the horizontal axis."""
        x = float(self.px(np.array([value]))[0])
        return Markup('<path class="level" d="M{:.1f} {}V{:.0f}"/>').format(
            x, _TOP, self.height - _BOTTOM
        )


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


_MOST_POINTS = 1500
_LONGEST_NAME = 19  # characters; the rest of the width is for the values
_SHAPES = {
    "better": ("M0-5L5 4H-5Z", 0),
    "worse": ("M0 5L5-4H-5Z", 1),
    "no difference": ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", GRAY),
}


@dataclass(frozen=True)
class Dot:
    """One row of :func:`dot_chart`.

    Args:
        name: What it is about.
        value: Where the dot is.
        low: Lower end of its interval; the value itself where there is none.
        high: Upper end.
        kind: What may be said of it; shape and color.
    """

    name: str
    value: float
    low: float
    high: float
    kind: Literal["better", "worse", "no difference"] = "better"


def dot_chart(
    title: str, dots: Sequence[Dot], *, x_label: str, note: str = "", zero: bool = False
) -> Markup:
    """One row per name with a dot and its interval.

    Args:
        title: What it shows.
        dots: From top to bottom.
        x_label: Of the horizontal axis.
        note: A few words below the title.
        zero: Whether zero is marked.
    """
    left, row = 12 + 7.2 * min(_LONGEST_NAME, max(len(dot.name) for dot in dots)), 22
    height = row * len(dots) + 44
    ends = np.array([[d.value, d.low, d.high] for d in dots]).clip(-1e9, 1e9)
    frame = Frame(
        limits([ends[:, 0]], [ends[:, 1:].ravel()], also=0.0 if zero else None),
        (0.0, 1.0),
        height=height,
        left=left,
    )
    parts = [frame.vertical_grid(x_label)] + ([frame.vertical(0.0)] if zero else [])
    for i, (dot, ends_) in enumerate(zip(dots, ends, strict=True)):
        parts.append(_row(frame, dot, ends_, 8 + row * (i + 0.5)))
    words = "; ".join(f"{d.name} {_interval_words(d)}" for d in dots)
    return figure(title, note, svg(f"{title}: {words}.", Markup().join(parts), height))


def scatter_chart(
    title: str, x: Values, y: Values, *, x_label: str, y_label: str, note: str = ""
) -> Markup:
    """Points around the diagonal on which both are equal; 1,500 evenly chosen ones of more.

    Args:
        title: What it shows.
        x: Shape ``(N,)``.
        y: Shape ``(N,)``.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
        note: A few words below the title.
    """
    both = limits([x, y])
    frame = Frame(both, both, height=WIDTH)
    chosen = slice(None, None, -(-len(x) // _MOST_POINTS))
    points = "".join(
        f"M{a:.1f} {b:.1f}h0" for a, b in zip(frame.px(x[chosen]), frame.py(y[chosen]), strict=True)
    )
    diagonal = "M{:.1f} {:.1f}L{:.1f} {:.1f}".format(
        *(frame.px(np.array([both[0]]))[0], frame.py(np.array([both[0]]))[0]),
        *(frame.px(np.array([both[1]]))[0], frame.py(np.array([both[1]]))[0]),
    )
    body = Markup('{}<path class="level" d="{}"/><path class="dots scatter k0" d="{}"/>')
    words = f"{title}: {len(x)} points, {y_label} over {x_label}. {note}"
    picture = svg(words, body.format(frame.grid(x_label, y_label), diagonal, points), height=WIDTH)
    return figure(title, note, picture)


def _row(frame: Frame, dot: Dot, ends: Values, y: float) -> Markup:
    x = np.clip(frame.px(ends), frame.left, WIDTH - 2)
    shape, color = _SHAPES[dot.kind]
    return Markup(
        '<text class="name" x="{0:.0f}" y="{1:.1f}" text-anchor="end">{2}<title>{9}</title></text>'
        '<path class="line k{3}" d="M{4:.1f} {5:.1f}H{6:.1f}"/>'
        '<path class="f{3}" transform="translate({7:.1f} {5:.1f})" d="{8}"/>'
    ).format(
        *(frame.left - 8, y + 4, _shortened(dot.name), color, x[1], y, x[2], x[0], shape),
        dot.name,
    )


def _shortened(name: str) -> str:
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def _interval_words(dot: Dot) -> str:
    value = number(dot.value)
    return value if dot.low == dot.high else f"{value} ({number(dot.low)} to {number(dot.high)})"
