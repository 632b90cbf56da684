"""What the curves of a run show: its logs as lines of numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.runs.folder import RunFolder
from cggm.runs.logs import read_jsonl

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
