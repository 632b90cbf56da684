"""Pictures of a segmentation beside the reference on the slice that shows most of the lesion."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cggm.runs.folder import replacing
from cggm_seg.axial import (
    BACKGROUND,
    COLORS,
    FAINT,
    TEXT,
    TITLES,
    best_slice,
    brain_window,
    gray_levels,
    shown_modalities,
)
from cggm_seg.regions import region_mask

_CLASSES = {"NCR": 1, "ED": 2, "ET": 3}
_NAMES = {"ED": "edema (ED)", "ET": "enhancing tumor (ET)", "NCR": "necrotic core (NCR)"}
_OPACITY = 0.35


def save_overlay(
    path: Path,
    images: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    *,
    case_id: str,
    modalities: Sequence[str],
    note: str = "",
) -> None:
    """Writes one PNG: image, reference and prediction of an axial slice on FLAIR and T1ce.

    The slice is the one with the largest lesion in the reference, or in the prediction where there
    is no reference. Anterior is up and the patient's left is on the right, as in radiology.
    A modality that is absent is left out; without FLAIR and T1ce the first one is shown.

    Args:
        path: Where to; its folder must exist.
        images: Intensities of any scale, 0 outside the brain, LPS, shape ``(M, H, W, Z)``.
        prediction: Classes 0 background, 1 NCR, 2 ED, 3 ET, shape ``(H, W, Z)``.
        reference: Likewise, or ``None``.
        case_id: For the title.
        modalities: Names of the M images.
        note: Added to the title, such as ``"simulated data"``.

    Raises:
        ValueError: If the shapes do not fit.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    _check_shapes(images, prediction, reference, modalities)
    depth = best_slice(images, prediction if reference is None else reference)
    window = brain_window(images[..., depth])
    shown = shown_modalities(modalities)
    columns = {"image": None, "reference": reference, "prediction": prediction}
    if reference is None:
        del columns["reference"]
    figure = Figure(figsize=(3.4 * len(columns), 3.9 * len(shown) + 1.3), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, modality in zip(grid, shown, strict=True):
        image = images[list(modalities).index(modality)][..., depth][window]
        for axes, (column, labels) in zip(row, columns.items(), strict=True):
            shading = None if labels is None else labels[..., depth][window]
            _draw(axes, image, shading)
            axes.set_title(f"{TITLES.get(modality, modality)}  {column}", color=TEXT, size=11)
    _annotate(figure, grid[0, 0], _title(case_id, depth, note), _scores(prediction, reference))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor=BACKGROUND)


def _check_shapes(
    images: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    modalities: Sequence[str],
) -> None:
    expected = (len(modalities), *prediction.shape)
    if images.shape != expected:
        raise ValueError(f"Expected `images` of shape {expected}, but got {images.shape}.")
    if reference is not None and reference.shape != prediction.shape:
        raise ValueError(
            f"Expected `reference` of shape {prediction.shape}, but got {reference.shape}."
        )


def _draw(axes: Axes, image: np.ndarray, labels: np.ndarray | None) -> None:
    # Arrays are LPS: transposed, rows run to posterior and columns to the patient's left.
    axes.imshow(gray_levels(image).T[..., None].repeat(3, -1), interpolation="bilinear")
    axes.set_axis_off()
    if labels is None:
        return
    shading = np.zeros((*labels.T.shape, 4))
    for name, color in COLORS.items():
        shading[_CLASSES[name] == labels.T] = (*to_rgb(color), _OPACITY)
    axes.imshow(shading, interpolation="nearest")
    for name, members in (("ED", (1, 2, 3)), ("ET", (1, 3)), ("NCR", (1,))):
        inside = np.isin(labels.T, members)
        if inside.any() and not inside.all():
            axes.contour(inside, levels=[0.5], colors=COLORS[name], linewidths=1.3)


def _title(case_id: str, depth: int, note: str) -> str:
    return f"{case_id}   axial slice {depth}" + (f"   ({note})" if note else "")


def _scores(prediction: np.ndarray, reference: np.ndarray | None) -> str:
    if reference is None:
        return "no reference"
    scores = []
    for region in ("WT", "TC", "ET"):
        found, wanted = region_mask(prediction, region), region_mask(reference, region)
        total = np.count_nonzero(found) + np.count_nonzero(wanted)
        dice = 2 * np.count_nonzero(found & wanted) / total if total else 1.0
        scores.append(f"{region} {dice:.3f}")
    return "Dice of the volume   " + "   ".join(scores)


def _annotate(figure: Figure, first: Axes, title: str, scores: str) -> None:
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.55 / height, top=1 - 1.05 / height, wspace=0.02, hspace=0.1
    )
    figure.text(0.5, 1 - 0.3 / height, title, color=TEXT, size=14, weight="bold", ha="center")
    figure.text(0.5, 1 - 0.58 / height, scores, color=TEXT, size=11, ha="center")
    for x, side in ((0.04, "R"), (0.96, "L")):
        first.text(x, 0.95, side, transform=first.transAxes, color=FAINT, size=11, ha="center")
    handles = [Patch(color=color, label=_NAMES[name]) for name, color in COLORS.items()]
    legend = figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    for text in legend.get_texts():
        text.set_color(TEXT)
