"""Curves of a run, drawn from its logs: what each modality learned and how it was balanced."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import UserError
from cggm.runs.files import replacing
from cggm.runs.folder import RunFolder
from cggm.runs.watch.logs import read_jsonl

Values = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette, told apart in all common kinds of color vision; its yellow is too light.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its lines, and the single values behind them.

    Args:
        name: Of its file.
        title: What it shows.
        xlabel: What the horizontal axis counts.
        x: Where on that axis, shape ``(N,)``.
        lines: Values by name, shape ``(N,)`` each, NaN where there is none.
        raw: Single values by name, shown as dots behind the mean of the line.
        level: Where a horizontal line marks what is neutral.
        colors: Color by name; grays where not given.
    """

    name: str
    title: str
    xlabel: str
    x: Values
    lines: Mapping[str, Values]
    raw: Mapping[str, Values] = field(default_factory=dict)
    level: float | None = None
    colors: Mapping[str, str] | None = None


def modality_colors(modalities: Sequence[str]) -> dict[str, str]:
    """One color per modality, the same in every figure of a run.

    Args:
        modalities: Names, in the order of the run; colors repeat after seven.
    """
    return {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(modalities)}


def read_panels(run: RunFolder) -> list[Panel]:
    """The panels of what a run has recorded so far, none where it has not.

    Args:
        run: The run.

    Raises:
        UserError: If a log is damaged.
    """
    balance = read_jsonl(run.balance) if run.balance.exists() else []
    metrics = read_jsonl(run.metrics) if run.metrics.exists() else []
    panels = [*_modality_panels(balance), *_loss_panel(balance, metrics), *_validation(metrics)]
    return [panel for panel in panels if panel.lines]


def _modality_panels(records: Records) -> Iterator[Panel]:
    keys = ("score", "term", "cosine", "gradient_norm")
    names = [name for r in records for key in keys for name in r.get(key) or ()]
    modalities = list(dict.fromkeys(names))

    def panel(key: str, title: str, raw_key: str, level: float | None) -> Panel:
        lines, raw = _nested(records, key, modalities), _nested(records, raw_key, modalities)
        x = _column(records, "iteration")
        return Panel(key, title, "iteration", x, lines, raw, level, modality_colors(modalities))

    yield panel("score", "Score of each head", "score", None)
    yield panel("term", "Balancing term (dots: raw ratio)", "raw_term", 1.0)
    yield panel("cosine", "Cosine to the fused gradient", "cosine", 0.0)
    yield panel("gradient_norm", "Gradient norm", "gradient_norm", None)


def _loss_panel(balance: Records, metrics: Records) -> Iterator[Panel]:
    for records, key in ((balance, "loss"), (metrics, "train_loss")):
        loss = _known({"loss": _column(records, key)})
        if loss:
            x = _column(records, "iteration")
            yield Panel("loss", "Training loss", "iteration", x, loss, loss)
            return


def _validation(records: Records) -> Iterator[Panel]:
    """The first kind of metric, such as all ``val_dice_*``; kinds differ in scale."""
    keys = dict.fromkeys(key for r in records for key in r if key.startswith("val_"))
    kinds = [kind for key in keys if (kind := key.split("_")[1]) != "loss"] or ["loss"]
    prefix = f"val_{kinds[0]}"
    chosen = {key.removeprefix(prefix).strip("_"): key for key in keys if key.startswith(prefix)}
    lines = {name.replace("_", " "): _column(records, key) for name, key in chosen.items()}
    x = _column(records, "epoch")
    yield Panel("validation", f"Validation {kinds[0]}", "epoch", x, _known(lines))


def _column(records: Records, key: str) -> Values:
    """One number per record, NaN where it is absent or null."""
    return np.array([np.nan if (v := r.get(key)) is None else v for r in records], float)


def _nested(records: Records, key: str, names: Sequence[str]) -> dict[str, Values]:
    groups = [r.get(key) or {} for r in records]
    return _known({name: _column(groups, name) for name in names})


def _known(lines: Mapping[str, Values]) -> dict[str, Values]:
    return {name: values for name, values in lines.items() if np.isfinite(values).any()}


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["STYLE", "CurveRefresh", "modality_colors", "plot_curves", "running_mean"]

_GRAYS = ("#333333", "#777777", "#999999", "#AAAAAA")
_DASHES = ("-", "--", ":", "-.")
_MOST_DOTS = 1000
_FIRST_DRAWING = 1.0  # seconds, before one was made
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def plot_curves(run: RunFolder | Path) -> list[Path]:
    """Draw the curves of a run as PNG files in its folder ``curves``.

    Score, balancing term, cosine and gradient norm per modality, the loss (the paper's figures 2,
    3, 6 and 7) and the validation metrics get a file each; ``curves.png`` shows them together.
    Lines are running means over 4 % of the run, dots are single values. What the run did not record
    is left out.

    Args:
        run: The run, finished or not.

    Returns:
        The files, ``curves.png`` last.

    Raises:
        UserError: If nothing was logged.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    panels = read_panels(run)
    if not panels:
        raise UserError(f"{run.path}: nothing was logged yet.", "Give the folder of a run.")
    return [*(_save(run, panel.name, [panel]) for panel in panels), _save(run, "curves", panels)]


class CurveRefresh:
    """Keeps ``curves.png`` up to date while a run trains, at a small share of its time.

    Args:
        run: The run.
        longest_share: Of the time since the last drawing that one may take.
    """

    def __init__(self, run: RunFolder, *, longest_share: float = 0.05) -> None:
        self._run, self._longest_share = run, longest_share
        self._drawn_at = time.monotonic()
        self._seconds = _FIRST_DRAWING

    def draw_if_cheap(self) -> None:
        """Draw from the logs, unless the last drawing is too recent for what one costs."""
        started = time.monotonic()
        if self._seconds > self._longest_share * (started - self._drawn_at):
            return
        _save(self._run, "curves", read_panels(self._run))
        self._drawn_at = time.monotonic()
        self._seconds = self._drawn_at - started


def _save(run: RunFolder, name: str, panels: Sequence[Panel]) -> Path:
    import matplotlib as mpl

    run.curves.mkdir(exist_ok=True)
    file = run.curves / f"{name}.png"
    with mpl.rc_context(STYLE), replacing(file) as temporary:
        _figure(panels).savefig(temporary, dpi=150, format="png")
    return file


def running_mean(values: Values, window: int) -> Values:
    """Mean over the surrounding values, of fewer at the ends; NaN stays and does not spread.

    Args:
        values: Shape ``(N,)``.
        window: Number of values, made odd.

    Returns:
        Shape ``(N,)``.
    """
    known = np.isfinite(values)
    half = window // 2
    sums, counts = (
        np.convolve(np.pad(v, half), np.ones(2 * half + 1), "valid")
        for v in (np.where(known, values, 0.0), known.astype(float))
    )
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def _figure(panels: Sequence[Panel]) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 6.0), 2.9 * rows + 0.6), layout="constrained")
    for index, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, columns, index + 1), panel)
    colors = next((panel.colors for panel in panels if panel.colors), None)
    if colors:
        _color_legend(figure, colors)
    return figure


def _color_legend(figure: "Figure", colors: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, linewidth=2.5, label=name) for name, c in colors.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))


def _draw(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    window = len(panel.x) // 25 if panel.raw else 1
    means = {name: running_mean(values, window) for name, values in panel.lines.items()}
    thinned = slice(None, None, -(-len(panel.x) // _MOST_DOTS))
    for i, (name, mean) in enumerate(means.items()):
        gray, dash = _GRAYS[i % len(_GRAYS)], _DASHES[i % len(_DASHES)]
        color, dash = (panel.colors[name], "-") if panel.colors else (gray, dash)
        known = np.isfinite(mean)
        few = known.sum() <= 20
        if name in panel.raw:
            x, raw = panel.x[thinned], panel.raw[name][thinned]
            axes.plot(x, raw, ".", color=color, markersize=6 if few else 3, alpha=0.35, mew=0)
        marker = "o" if few else ""
        axes.plot(panel.x[known], mean[known], dash, color=color, label=name, marker=marker, ms=3)
    if panel.level is not None:
        axes.axhline(panel.level, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(_limits([*means.values()], [*panel.raw.values()]))
    axes.set(title=panel.title, xlabel=panel.xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.colors is None and len(means) > 1:
        axes.legend(fontsize=8)


def _limits(means: Sequence[Values], raw: Sequence[Values]) -> tuple[float, float]:
    """All of the means, and of the raw values what does not squeeze them."""
    low, high = (float(pick(np.concatenate(means))) for pick in (np.nanmin, np.nanmax))
    span = high - low or abs(high) or 1.0
    if raw:
        raw_low, raw_high = np.nanpercentile(np.concatenate(raw), [1, 99])
        low, high = min(low, max(raw_low, low - span)), max(high, min(raw_high, high + span))
    margin = 0.05 * (high - low or span)
    return low - margin, high + margin
