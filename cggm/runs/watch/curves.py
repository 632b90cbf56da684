"""Curves of a run as charts of its logs: what each modality learned and how it was balanced."""

import os.path
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cggm.display import GRAY, INK, PALETTE, Line, LineChart, Values, picture_file
from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.metrics import find_metric
from cggm.runs.storage import write_atomically
from cggm.runs.watch.logs import read_jsonl

Log = Sequence[Mapping[str, Any]]
"""Lines of ``metrics.jsonl`` or of ``balance.jsonl``."""

_READINGS = {
    "score": ("Score of each head", "score", None, ""),
    "term": (
        "Factor B on each encoder's gradient",
        "raw_term",
        1.0,
        "lines: in use; dots: raw ratio of equation (7)",
    ),
    "gate": (
        "Gate: a head's signal above chance",
        "gate",
        None,
        "as a share of the best head's signal",
    ),
    "lead": ("Samples that each head explains best", "lead", None, "as a share of all samples"),
    "weight": ("Weight of each modality's own loss", "weight", None, ""),
    "cosine": ("Cosine of head's and network's gradient", "cosine", 0.0, ""),
    "gradient_norm": ("Norm of each encoder's gradient", "gradient_norm", None, ""),
}
"""Reading to the title of its chart, the reading of its dots, its neutral value and a note."""

_IN_FILES = ("score", "term", "cosine", "gradient_norm")
_SMOOTHED = 25  # windows of a run over which lines are running means
_FIRST_DRAWING = 1.0  # seconds, before one was made


def column(log: Log, key: str) -> Values:
    """One number per line of a log, NaN where it is absent or null.

    Args:
        log: The log.
        key: A number in its lines.
    """
    return np.array([np.nan if (v := row.get(key)) is None else v for row in log], float)


def by_modality(log: Log, key: str) -> dict[str, Values]:
    """A column for each modality that has any number.

    Args:
        log: Lines of ``balance.jsonl``.
        key: A mapping by modality in them, such as ``"score"``.
    """
    groups = [row.get(key) or {} for row in log]
    columns = {name: column(groups, name) for name in modality_colors(log)}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def modality_colors(log: Log) -> dict[str, int]:
    """Modalities in the order of a run, each with the color that it has in every chart.

    Args:
        log: Lines of ``balance.jsonl``.
    """
    names = (name for row in log for key in _IN_FILES for name in row.get(key) or ())
    return {name: i % len(PALETTE) for i, name in enumerate(dict.fromkeys(names))}


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


def balance_charts(log: Log) -> dict[str, LineChart]:
    """Charts of what a method saw and did, by reading; without those that it does not have.

    Lines are running means over 4 % of the run, dots are single values.

    Args:
        log: Lines of ``balance.jsonl``.
    """
    x, window, colors = column(log, "iteration"), len(log) // _SMOOTHED, modality_colors(log)
    charts = {}
    for key, (title, single, level, note) in _READINGS.items():
        dots = by_modality(log, single)
        lines = [
            Line(name, x, running_mean(values, window), colors[name], dots.get(name))
            for name, values in by_modality(log, key).items()
        ]
        if lines:
            charts[key] = LineChart(title, lines, "step", note, level)
    return charts


def loss_chart(balance: Log, metrics: Log) -> LineChart | None:
    """The training loss, step by step where it was recorded, else by epoch; ``None`` without one.

    Args:
        balance: Lines of ``balance.jsonl``.
        metrics: Lines of ``metrics.jsonl``.
    """
    for log, key in ((balance, "loss"), (metrics, "train_loss")):
        loss = column(log, key)
        if np.isfinite(loss).any():
            mean = running_mean(loss, len(loss) // _SMOOTHED)
            line = Line("loss", column(log, "iteration"), mean, INK, loss, dash=0)
            return LineChart("Training loss", [line], "step")
    return None


def validation_charts(metrics: Log) -> list[LineChart]:
    """A chart for each kind of validation metric, such as all ``val_dice_*``, as scales differ.

    Args:
        metrics: Lines of ``metrics.jsonl``.

    Raises:
        UserError: If a metric is not registered.
    """
    kinds: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in metrics for key in row if key.startswith("val_")):
        kinds.setdefault(key.split("_")[1], []).append(key.removeprefix("val_"))
    kinds = dict(sorted(kinds.items(), key=lambda item: item[0] == "loss"))  # it comes last
    x = column(metrics, "epoch")
    charts = []
    for kind, names in kinds.items():
        labels = [find_metric(name).heading for name in names]
        title = _in_common(labels) or kind
        lines = [
            Line(label, x, column(metrics, f"val_{name}"), *_shade(i, len(names)))
            for i, (label, name) in enumerate(zip(labels, names, strict=True))
        ]
        charts.append(LineChart(f"Validation: {title}", lines, "epoch", named=len(names) > 1))
    return [chart for chart in charts if chart.known]


def plot_curves(run: RunFolder | Path, *, simulated: bool = False) -> list[Path]:
    """Draw the curves of a run as PNG files in its folder ``curves``.

    Score, balancing term, cosine and gradient norm per modality, the loss (the paper's figures 2,
    3, 6 and 7) and the validation metrics get a file each; ``curves.png`` shows them together.
    What the run did not record is left out.

    Args:
        run: The run, finished or not.
        simulated: Whether its data are, which the pictures then say.

    Returns:
        The files, ``curves.png`` last.

    Raises:
        UserError: If nothing was logged.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    charts = read_charts(run)
    if not charts:
        raise UserError(f"{run.path}: nothing was logged yet.", "Give the folder of a run.")
    parts = {**{name: [chart] for name, chart in charts.items()}, "curves": [*charts.values()]}
    return [_save(run, name, own, simulated=simulated) for name, own in parts.items()]


def read_charts(run: RunFolder) -> dict[str, LineChart]:
    """The charts of what a run has recorded so far, by the name of their file.

    Args:
        run: The run.

    Raises:
        UserError: If a log is damaged.
    """
    balance = read_jsonl(run.balance) if run.balance.exists() else []
    metrics = read_jsonl(run.metrics) if run.metrics.exists() else []
    readings = balance_charts(balance)
    charts: dict[str, LineChart | None] = {key: readings.get(key) for key in _IN_FILES}
    charts["loss"] = loss_chart(balance, metrics)
    # The first kind is the one that selects the checkpoint.
    charts["validation"] = next(iter(validation_charts(metrics)), None)
    return {name: chart for name, chart in charts.items() if chart is not None}


class CurveRefresh:
    """Keeps ``curves.png`` up to date while a run trains, at a small share of its time.

    Args:
        run: The run.
        longest_share: Of the time since the last drawing that one may take.
        simulated: Whether the data of the run are, which the picture then says.
    """

    def __init__(
        self, run: RunFolder, *, longest_share: float = 0.05, simulated: bool = False
    ) -> None:
        self._run, self._longest_share, self._simulated = run, longest_share, simulated
        self._drawn_at = time.monotonic()
        self._seconds = _FIRST_DRAWING

    def draw_if_cheap(self) -> None:
        """Draw from the logs, unless the last drawing is too recent for what one costs."""
        started = time.monotonic()
        if self._seconds > self._longest_share * (started - self._drawn_at):
            return
        charts = [*read_charts(self._run).values()]
        _save(self._run, "curves", charts, simulated=self._simulated)
        self._drawn_at = time.monotonic()
        self._seconds = self._drawn_at - started


def _in_common(labels: Sequence[str]) -> str:
    """What several labels begin with, else the words that all of them have."""
    start = os.path.commonprefix(labels).rstrip(" ,<>=(")  # noqa: RUF071  (character by character)
    others = [label.split() for label in labels[1:]]
    words = [word for word in labels[0].split() if all(word in other for other in others)]
    return start or " ".join(words)


def _shade(number: int, lines: int) -> tuple[int, None, int]:
    """Color, dots and pattern of one of several lines that are no modalities: grays for a few."""
    if lines > 4:
        return number % len(PALETTE), None, number % 4
    return (INK, GRAY)[number % 2], None, number


def _save(run: RunFolder, name: str, charts: Sequence[LineChart], *, simulated: bool) -> Path:
    run.curves.mkdir(exist_ok=True)
    file = run.curves / f"{name}.png"
    write_atomically(file, picture_file(charts, head="SIMULATED DATA" if simulated else ""))
    return file
