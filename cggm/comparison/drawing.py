"""What the figures of a comparison share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cggm.comparison.statistics import Difference, Verdict
from cggm.runs.curves import STYLE
from cggm.runs.folder import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_COLORS: dict[Verdict, str] = {
    "better": "#0072B2",
    "no difference": "#777777",
    "worse": "#D55E00",
}
_SHAPES: dict[Verdict, str] = {"better": "^", "no difference": "o", "worse": "v"}


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure to draw into, written as a whole at the end of the block.

    Args:
        path: The PNG; its folder must exist.
        width: In inches.
        height: In inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), replacing(path) as temporary:
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(temporary, dpi=150, format="png")


def draw_differences(
    axes: "Axes", positions: Sequence[float], differences: Sequence[Difference], *, across: bool
) -> None:
    """Draw means and intervals, an infinite end far beyond the others.

    Args:
        axes: Where; its limits are to be set afterwards, see :func:`frame_of`.
        positions: Of the differences.
        differences: One per position.
        across: Whether the intervals lie horizontally.
    """
    for position, d in zip(positions, differences, strict=True):
        low, high = np.clip([d.low, d.high], -1e9, 1e9)
        line, dot = ((low, high), (position, position)), (d.mean, position)
        if not across:
            line, dot = line[::-1], dot[::-1]
        color = _COLORS[d.verdict]
        axes.plot(*line, "-", color=color, linewidth=1.6, solid_capstyle="butt", zorder=2)
        axes.plot(*dot, _SHAPES[d.verdict], color=color, ms=6, zorder=3)


def frame_of(differences: Sequence[Difference]) -> tuple[float, float]:
    """Limits of an axis with zero, all means, and intervals unless a few of them are far wider.

    Args:
        differences: All that the axis shows.
    """
    means = [0.0, *(d.mean for d in differences if d.n)]
    ends = [end for d in differences for end in (d.low, d.high) if math.isfinite(end)]
    widths = [w for d in differences if math.isfinite(w := d.high - d.low)]
    reach = 1.5 * max(max(means) - min(means), float(np.median(widths or [0.0]))) or 1.0
    low = max(min(means + ends), min(means) - reach)
    high = min(max(means + ends), max(means) + reach)
    margin = 0.06 * (high - low or reach)
    return low - margin, high + margin


def zero_line(axes: "Axes", *, across: bool) -> None:
    """Mark zero, vertically where the intervals lie across."""
    mark = axes.axvline if across else axes.axhline
    mark(0.0, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def verdict_handles(differences: Sequence[Difference]) -> list["Line2D"]:
    """Entries of a legend for the verdicts that occur."""
    from matplotlib.lines import Line2D

    present = {d.verdict for d in differences}
    return [
        Line2D([], [], color=color, marker=_SHAPES[verdict], label=verdict)
        for verdict, color in _COLORS.items()
        if verdict in present
    ]


def draw_legend(figure: "Figure", handles: Sequence["Line2D"]) -> None:
    """A legend below the axes, where it hides nothing."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)) or 1)
