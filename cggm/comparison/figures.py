"""Figures of a comparison: differences, ranks, sweeps of settings, and gradients in the plane."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cggm.comparison.records import Record, of_task
from cggm.comparison.statistics import Difference, Rank, Verdict, compare
from cggm.comparison.tables import simulated_suffix
from cggm.runs import STYLE, find_metric, modality_colors, replacing

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


if TYPE_CHECKING:
    from matplotlib.axes import Axes

Vectors = NDArray[np.floating]
_MARKERS = {"head": ("o", "head"), "unimodal": ("x", "network with one modality")}
_SETTINGS = {"rho": "rho, strength of the magnitude", "lambda": "lambda, weight of the direction"}


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep.

    Args:
        setting: ``"rho"`` or ``"lambda"``.
        value: Of the setting.
        difference: CGGM with it, minus joint training.
    """

    setting: str
    value: float
    difference: Difference


def plot_differences(
    records: Sequence[Record], task: str, metric: str, path: Path, *, reference: str = "joint"
) -> None:
    """Draw the difference of each method to joint training with its interval, best on top.

    Args:
        records: Of any tasks and methods.
        task: Which one.
        metric: A key of ``test``.
        path: The PNG.
        reference: What the others are compared with.
    """
    runs, better = of_task(records, task), _better(metric)
    found = {n: d for n, d in compare(runs, metric, reference=reference).items() if d.n}
    sign = -1 if find_metric(metric).lower_is_better else 1
    ordered = sorted(found.items(), key=lambda item: sign * item[1].mean)
    with new_figure(path, 6.0, 1.3 + 0.28 * len(ordered)) as figure:
        axes = figure.add_subplot()
        zero_line(axes, across=True)
        draw_differences(axes, range(len(ordered)), [d for _, d in ordered], across=True)
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.set(ylim=(-0.6, len(ordered) - 0.4), xlim=frame_of([*found.values()]))
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{task}: {metric}{simulated_suffix(runs)}")
        axes.set_xlabel(f"difference of {metric} to {reference} ({better})")
        draw_legend(figure, verdict_handles([*found.values()]))


def plot_ranks(ranks: Mapping[str, Rank], path: Path, *, simulated: bool = False) -> None:
    """Draw the average rank of each method, best on top; hollow where a task is missing.

    Args:
        ranks: From :func:`cggm.comparison.statistics.average_ranks`.
        path: The PNG.
        simulated: Whether the data were.
    """
    from matplotlib.ticker import MaxNLocator

    shown = {name: rank for name, rank in ranks.items() if rank.tasks}
    rows = range(len(shown))[::-1]
    averages = [rank.average for rank in shown.values()]
    with new_figure(path, 6.0, 1.0 + 0.26 * len(shown)) as figure:
        axes = figure.add_subplot()
        for row, rank in zip(rows, shown.values(), strict=True):
            face = "#0072B2" if rank.complete else "white"
            axes.plot(rank.average, row, "o", color="#0072B2", mfc=face, ms=6)
        names = [n if r.complete else f"{n} (not all tasks)" for n, r in shown.items()]
        axes.set_yticks(rows, names)
        axes.set(ylim=(-0.6, len(shown) - 0.4), xlim=(0.7, max(averages, default=1.0) + 0.3))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_title("Ranks over tasks" + ("\n(SIMULATED)" if simulated else ""))
        axes.set_xlabel("average rank (1 is best)")


def plot_sweep(
    points: Sequence[SweepPoint], path: Path, *, metric: str, simulated: bool = False
) -> None:
    """Draw the difference to joint training against rho and against lambda: the paper's figure 5.

    Args:
        points: In any order.
        path: The PNG.
        metric: What the differences are of.
        simulated: Whether the data were.
    """
    differences = [point.difference for point in points]
    with new_figure(path, 8.0, 3.2) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (setting, label) in zip(panels, _SETTINGS.items(), strict=True):
            chosen = sorted((p for p in points if p.setting == setting), key=lambda p: p.value)
            x, own = [p.value for p in chosen], [p.difference for p in chosen]
            zero_line(axes, across=False)
            axes.plot(x, [d.mean for d in own], "-", color="#AAAAAA", zorder=1)
            draw_differences(axes, x, own, across=False)
            axes.set(title=setting + (" (SIMULATED)" if simulated else ""), xlabel=label)
        panels[0].set_ylim(frame_of(differences))
        panels[0].set_ylabel(f"difference of {metric}\nto joint ({_better(metric)})")
        draw_legend(figure, verdict_handles(differences))


def plot_gradients(
    vectors: Mapping[str, Vectors],
    labels: Mapping[str, Sequence[tuple[str, str]]],
    path: Path,
    seed: int,
    *,
    simulated: bool = False,
) -> None:
    """Draw gradients of heads and of the network with one modality by t-SNE: the paper's figure 4.

    Each panel is an embedding of its own. t-SNE keeps neighbors, so that clusters may be told
    apart or not, but neither distances between clusters nor their sizes mean anything.

    Args:
        vectors: Flattened gradients by method, shape ``(N, P)``, at least four.
        labels: By method, the modality and ``"head"`` or ``"unimodal"`` of each row.
        path: The PNG.
        seed: Of the embedding.
        simulated: Whether the data were.
    """
    from matplotlib.lines import Line2D

    colors = modality_colors([*dict.fromkeys(m for own in labels.values() for m, _ in own)])
    with new_figure(path, max(3.2 * len(vectors), 6.0), 3.8) as figure:
        panels = figure.subplots(1, len(vectors), squeeze=False)[0]
        for axes, (name, own) in zip(panels, vectors.items(), strict=True):
            _scatter(axes, _embedded(own, seed), labels[name], colors)
            title = name + (" (SIMULATED)" if simulated else "")
            axes.set(title=title, xticks=[], yticks=[])
        lines = [Line2D([], [], color=c, linewidth=3, label=name) for name, c in colors.items()]
        dots = [
            Line2D([], [], color="#333333", marker=marker, linestyle="", label=name)
            for marker, name in _MARKERS.values()
        ]
        draw_legend(figure, [*lines, *dots])


def _better(metric: str) -> str:
    return f"{'lower' if find_metric(metric).lower_is_better else 'higher'} is better"


def _embedded(vectors: Vectors, seed: int) -> Vectors:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    points: Vectors = tsne.fit_transform(vectors)
    return points


def _scatter(
    axes: "Axes", points: Vectors, labels: Sequence[tuple[str, str]], colors: Mapping[str, str]
) -> None:
    for modality, kind in dict.fromkeys(labels):
        own = points[[label == (modality, kind) for label in labels]]
        axes.plot(*own.T, _MARKERS[kind][0], color=colors[modality], ms=4)
