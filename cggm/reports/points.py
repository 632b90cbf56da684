"""Points as inline SVG: values with their intervals row by row, and one value over another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from cggm.reports.charts import GRAY, figure, svg
from cggm.reports.frame import WIDTH, Frame, limits
from cggm.reports.series import Values
from cggm.reports.tables import number

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
