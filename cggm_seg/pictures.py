"""What pictures of a case have in common: which slice, which part of it, grays and colors."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cggm.runs import replacing
from cggm_seg.evaluation import region_mask

COLORS = {"ED": "#56b4e9", "ET": "#e69f00", "NCR": "#cc3377"}
"""Colors of edema, enhancing tumor and necrotic core, apart for every kind of color vision."""

TITLES = {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1", "t2": "T2"}
BACKGROUND, TEXT, FAINT = "#101216", "#f2f2f2", "#9aa0a6"

_SHOWN = ("flair", "t1ce")
_MARGIN = 6  # voxels around the brain


def shown_modalities(modalities: Sequence[str]) -> list[str]:
    """FLAIR and T1ce, which show edema and enhancing tumor; without both, the first one."""
    return [name for name in _SHOWN if name in modalities] or [modalities[0]]


def best_slice(images: np.ndarray, labels: np.ndarray) -> int:
    """The slice with the largest lesion, or with the largest brain where there is no lesion.

    Args:
        images: Shape ``(M, H, W, Z)``, background 0.
        labels: Classes, shape ``(H, W, Z)``.
    """
    areas = np.count_nonzero(labels, (0, 1))
    if not areas.any():
        areas = np.count_nonzero(images[0], (0, 1))
    return int(areas.argmax())


def brain_window(slices: np.ndarray) -> tuple[slice, slice]:
    """Box of the brain and a margin in a slice of all modalities, ``(M, H, W)``."""
    brain = (slices != 0).any(0)
    window = []
    for axis in (0, 1):
        hit = np.flatnonzero(brain.any(1 - axis))
        low, high = (hit[0], hit[-1] + 1) if hit.size else (0, brain.shape[axis])
        window.append(slice(max(low - _MARGIN, 0), high + _MARGIN))
    return window[0], window[1]


def gray_levels(image: np.ndarray) -> np.ndarray:
    """Intensities of the brain stretched to 0-1, the brightest half percent cut off."""
    brain = image[image != 0]
    low, high = np.percentile(brain, [0.5, 99.5]) if brain.size else (0.0, 1.0)
    stretched = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.where(image != 0, 0.06 + 0.94 * stretched, 0)


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


REGION_COLORS = {"WT": COLORS["ED"], "TC": COLORS["NCR"], "ET": COLORS["ET"]}
"""Colors of the outlines. That of TC runs outside of it, or it would hide where TC is all ET."""

_SIDE = 400  # pixels of a panel
_FINE = 2  # outlines are drawn at twice the size and reduced, which smooths them
_LINE = 22  # pixels of a line of text
_PADDING = 10


def save_preview(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    case_id: str,
    modalities: Sequence[str],
    volumes: Mapping[str, float],
    absent: Sequence[str] = (),
) -> None:
    """Writes a PNG of about 170 kB: outlines of the regions on an axial slice, and a caption.

    The slice is the one with the largest lesion or, without a lesion, the largest brain. It is
    shown in FLAIR and T1ce; of those that are absent nothing can be shown. Anterior is up and the
    patient's left is on the right, as in radiology. For a comparison with a reference use
    :func:`cggm_seg.pictures.save_overlay`.

    Args:
        path: Where to; its folder must exist.
        images: Intensities, 0 outside the brain, LPS, shape ``(M, H, W, Z)``.
        labels: Classes 0 background, 1 NCR, 2 ED, 3 ET, shape ``(H, W, Z)``.
        case_id: For the caption.
        modalities: Names of the M images.
        volumes: Milliliters of each region, for the caption.
        absent: Modalities that the network did not see, for the caption.

    Raises:
        OSError: If the file cannot be written; nothing is left of it then.
    """
    depth = best_slice(images, labels)
    window = brain_window(images[..., depth])
    rows = {name: image[..., depth][window] for name, image in zip(modalities, images, strict=True)}
    panels = [
        _panel(rows[name], labels[..., depth][window], TITLES.get(name, name))
        for name in shown_modalities(modalities)
    ]
    lines = 3 if absent else 2
    size = (len(panels) * _SIDE, _SIDE + lines * _LINE + 2 * _PADDING)
    canvas = Image.new("RGB", size, BACKGROUND)
    for k, panel in enumerate(panels):
        canvas.paste(panel, (k * _SIDE, 0))
    _caption(canvas, case_id, depth, volumes, [TITLES.get(name, name) for name in absent])
    with replacing(path) as temporary:
        canvas.save(temporary, "PNG")


def _panel(image: np.ndarray, labels: np.ndarray, title: str) -> Image.Image:
    panel = Image.new("RGB", (_SIDE, _SIDE), BACKGROUND)
    # Arrays are LPS: transposed, rows run to posterior and columns to the patient's left.
    gray = Image.fromarray((gray_levels(image).T * 255).astype(np.uint8))
    ratio = _SIDE / max(gray.size)
    size = (round(gray.width * ratio), round(gray.height * ratio))
    corner = ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2)
    panel.paste(gray.resize(size, Image.Resampling.BICUBIC), corner)
    for region, color in REGION_COLORS.items():
        inside = region_mask(labels.T, region)
        if inside.any():
            panel.paste(color, corner, _outline(inside, size, region == "TC"))
    draw = ImageDraw.Draw(panel)
    draw.text((8, 6), title, FAINT, _font(14))
    draw.text((8, _SIDE // 2), "R", FAINT, _font(14))
    draw.text((_SIDE - 8, _SIDE // 2), "L", FAINT, _font(14), anchor="ra")
    return panel


def _outline(inside: np.ndarray, size: tuple[int, int], outside: bool) -> Image.Image:
    """Opacity of the inner or outer border of a region, in a picture of this size."""
    fine = (size[0] * _FINE, size[1] * _FINE)
    mask = Image.fromarray(inside.astype(np.uint8) * 255).resize(fine, Image.Resampling.BICUBIC)
    voxel = fine[0] / inside.shape[1]
    levels = mask.filter(ImageFilter.GaussianBlur(voxel / 2))  # a single voxel still reaches 118
    low, high = (25, 110) if outside else (110, 230)
    return levels.point([255 * (low <= level < high) for level in range(256)]).reduce(_FINE)


def _caption(
    canvas: Image.Image,
    case_id: str,
    depth: int,
    volumes: Mapping[str, float],
    absent: Sequence[str],
) -> None:
    draw, right = ImageDraw.Draw(canvas), canvas.width - _PADDING
    y = _SIDE + _PADDING
    place = f"axial slice {depth}"
    draw.text((right, y), place, FAINT, _font(14), anchor="ra")
    room = right - 2 * _PADDING - draw.textlength(place, _font(14))
    draw.text((_PADDING, y - 2), _shortened(draw, case_id, room), TEXT, _font(17))
    x: float = _PADDING
    for region, color in REGION_COLORS.items():
        text = f"{region} {volumes[region]:.1f} ml"
        draw.text((x, y + _LINE), text, color, _font(15))
        x += draw.textlength(text, _font(15)) + 2 * _PADDING
    if absent:
        text = f"absent, replaced by zeros: {', '.join(absent)}"
        draw.text((_PADDING, y + 2 * _LINE), text, TEXT, _font(14))


def _shortened(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    """The text, or its beginning and end where it is too long."""
    whole, kept = text, len(text)
    while draw.textlength(text, _font(17)) > room and kept > 2:
        kept -= 2
        text = f"{whole[: kept // 2]}...{whole[-(kept // 2) :]}"
    return text


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
