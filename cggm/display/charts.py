"""Charts as data: what a picture shows, in numbers and in words, whoever draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cggm.display.tables import number

Values = NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference", "not decided"]

# Okabe and Ito's palette, told apart in all common kinds of color vision; its yellow is too light.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GRAY, INK = 7, 8
"""Colors of what is in the background, and of text, beside those of the palette."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: What it shows.
        x: Where on the horizontal axis, shape ``(N,)``.
        y: Its values, shape ``(N,)``; the line goes on over NaN.
        color: Place in :data:`PALETTE`, :data:`GRAY` or :data:`INK`.
        dots: Single values behind the line, shape ``(N,)``.
        dash: Pattern of the line, 0 solid to 3; that of its color where ``None``, so that lines
            differ in print, too.
    """

    name: str
    x: Values
    y: Values
    color: int
    dots: Values | None = None
    dash: int | None = None

    @property
    def pattern(self) -> int:
        """Place of its pattern among the four."""
        return (self.color if self.dash is None else self.dash) % 4

    @property
    def course(self) -> str:
        """Its first and its last value, in words."""
        known = self.y[np.isfinite(self.y)]
        return f"{self.name} from {number(known[0])} to {number(known[-1])}"


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis.

    Args:
        title: What it shows.
        lines: Those without any value are left out by who draws it.
        x_label: What the horizontal axis counts.
        note: A few words below the title.
        level: Where a dashed horizontal line marks a value of note.
        named: Whether a legend of its own says which line is which; charts that stand side by side
            share one.
        y_range: Ends of the vertical axis, for charts that are compared; its own where ``None``.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    note: str = ""
    level: float | None = None
    named: bool = False
    y_range: tuple[float, float] | None = None

    @property
    def known(self) -> list[Line]:
        """The lines that have a value."""
        return [line for line in self.lines if np.isfinite(line.y).any()]

    @property
    def counts(self) -> bool:
        """Whether the horizontal axis has whole numbers alone, such as epochs."""
        return all(bool((line.x == np.round(line.x)).all()) for line in self.known)

    @property
    def y_limits(self) -> tuple[float, float]:
        """Ends of the vertical axis."""
        lines = self.known
        dots = [line.dots for line in lines if line.dots is not None]
        return self.y_range or limits([line.y for line in lines], dots, also=self.level)

    @property
    def words(self) -> str:
        """What it shows, for who cannot see it."""
        courses = "; ".join(line.course for line in self.known)
        return f"{self.title}, by {self.x_label}: {courses}."


@dataclass(frozen=True)
class Interval:
    """A value with the interval that it is known by.

    Args:
        name: What it is about.
        value: The value itself.
        low: Lower end; the value where there is no interval.
        high: Upper end.
        kind: What may be said of it, its shape and color; a blue dot where nothing is.
        hollow: Whether the dot is empty, as of a value that is not comparable with the others.
        position: Place on the other axis, where that is a number.
    """

    name: str
    value: float
    low: float
    high: float
    kind: Verdict | None = None
    hollow: bool = False
    position: float | None = None

    @property
    def words(self) -> str:
        """Name, value and ends."""
        ends = f" ({number(self.low)} to {number(self.high)})" if self.low != self.high else ""
        return f"{self.name} {number(self.value)}{ends}"


@dataclass(frozen=True)
class IntervalChart:
    """Values with their intervals, one row for each; upright where they have positions.

    Args:
        title: What it shows.
        intervals: From top to bottom, or from left to right.
        label: Of the axis of the values.
        note: A few words below the title.
        zero: Whether zero is marked.
        position_label: Of the axis of the positions.
        value_range: Ends of the axis of the values, for charts that are compared.
    """

    title: str
    intervals: Sequence[Interval]
    label: str
    note: str = ""
    zero: bool = False
    position_label: str = ""
    value_range: tuple[float, float] | None = None

    @property
    def upright(self) -> bool:
        """Whether the values are on the vertical axis."""
        return any(interval.position is not None for interval in self.intervals)

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis of the values."""
        return self.value_range or interval_limits(self.intervals, zero=self.zero)

    @property
    def words(self) -> str:
        """What it shows, for who cannot see it."""
        return f"{self.title}: {'; '.join(interval.words for interval in self.intervals)}."


@dataclass(frozen=True)
class Cloud:
    """Points of one kind.

    Args:
        name: What they are.
        x: Shape ``(N,)``.
        y: Shape ``(N,)``.
        color: Place in :data:`PALETTE`.
        crossed: Whether they are drawn as crosses.
    """

    name: str
    x: Values
    y: Values
    color: int = 0
    crossed: bool = False


@dataclass(frozen=True)
class ScatterChart:
    """Points in the plane.

    Args:
        title: What it shows.
        clouds: The points by kind.
        x_label: Of the horizontal axis; without labels the axes have no numbers, as those of an
            embedding mean nothing.
        y_label: Of the vertical axis.
        note: A few words below the title.
        diagonal: Whether both axes are alike and the line on which both values are equal is drawn.
    """

    title: str
    clouds: Sequence[Cloud]
    x_label: str = ""
    y_label: str = ""
    note: str = ""
    diagonal: bool = False

    @property
    def words(self) -> str:
        """What it shows, for who cannot see it."""
        count = sum(len(cloud.x) for cloud in self.clouds)
        axes = f", {self.y_label} over {self.x_label}" if self.x_label else ""
        return f"{self.title}: {count} points{axes}. {self.note}"


Chart = LineChart | IntervalChart | ScatterChart


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
        # One value of a singular ratio may be millions of times the others.
        first, last = np.percentile(behind, [1, 99]).tolist()
        low, high = min(low, max(first, low - span)), max(high, min(last, high + span))
    room = margin * (high - low or span)
    return (low - room, high + room) if high > low else (low - span / 2, high + span / 2)


def interval_limits(intervals: Sequence[Interval], *, zero: bool) -> tuple[float, float]:
    """Ends of an axis with all values, and intervals unless a few of them are far wider.

    Args:
        intervals: All that the axis shows; ends may be infinite or NaN.
        zero: Whether zero must be seen as well.
    """
    values = [*([0.0] if zero else []), *(i.value for i in intervals if np.isfinite(i.value))]
    values = values or [0.0]
    ends = [end for i in intervals for end in (i.low, i.high) if np.isfinite(end)]
    widths = [i.high - i.low for i in intervals if np.isfinite(i.high - i.low)]
    reach = 1.5 * max(max(values) - min(values), float(np.median(widths or [0.0]))) or 1.0
    low = max(min(values + ends), min(values) - reach)
    high = min(max(values + ends), max(values) + reach)
    margin = 0.06 * (high - low or reach)
    return low - margin, high + margin
