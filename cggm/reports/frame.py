"""The axes of a chart: limits, ticks and grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from cggm.reports.series import Values

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
