"""Pictures of a case: an axial slice, with the tumor that was found and the one that is there.

Arrays are in the project's frame, LPS, whatever the orientation of their files: ``[..., z]`` is an
axial slice, and a case saved in another orientation has the same picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.ImageColor import getrgb

from cggm.runs import replacing
from cggm_seg.evaluation import CLASS_NAMES, REGION_NAMES, region_mask

COLORS = {"ED": "#56b4e9", "ET": "#e69f00", "NCR": "#cc3377"}
"""Colors of edema, enhancing tumor and necrotic core, apart for every kind of color vision."""

REGION_COLORS = {"WT": COLORS["ED"], "TC": COLORS["NCR"], "ET": COLORS["ET"]}
"""Colors of the outlines. That of TC runs outside of it, or it would hide where TC is all ET."""

TITLES = {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1", "t2": "T2"}
"""Modality to what pictures call it."""

_BACKGROUND, _TEXT, _FAINT = "#101216", "#f2f2f2", "#9aa0a6"
_SHOWN = ("flair", "t1ce")
_CLASSES = {"ED": 2, "ET": 3, "NCR": 1}
_OPACITY = 0.35  # of the color that fills a class

Spacing = tuple[float, float, float]
_ISOTROPIC = (1.0, 1.0, 1.0)

_MARGIN = 6  # voxels around the brain
_SIDE = 400  # pixels of a panel
_FINE = 2  # outlines are drawn at twice the size and reduced, which smooths them
_LINE = 22  # pixels of a line of text
_PADDING = 10


def shown_modalities(modalities: Sequence[str]) -> list[str]:
    """FLAIR and T1ce, which show edema and enhancing tumor; without both, the first one."""
    return [name for name in _SHOWN if name in modalities] or [modalities[0]]


def gray_levels(image: np.ndarray) -> np.ndarray:
    """Intensities of the brain stretched to 0-1, the brightest half percent cut off."""
    brain = image[image != 0]
    low, high = np.percentile(brain, [0.5, 99.5]) if brain.size else (0.0, 1.0)
    stretched = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.where(image != 0, 0.06 + 0.94 * stretched, 0)


def save_preview(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    case_id: str,
    modalities: Sequence[str],
    volumes: Mapping[str, float],
    absent: Sequence[str] = (),
    spacing: Spacing = _ISOTROPIC,
) -> None:
    """Writes a PNG of about 170 kB: outlines of the regions on an axial slice, and a caption.

    The slice is the one with the largest lesion or, without a lesion, the largest brain. It is
    shown in FLAIR and T1ce; of those that are absent nothing can be shown. Anterior is up and the
    patient's left is on the right, as in radiology. For a comparison with a reference use
    :func:`save_overlay`.

    Args:
        path: Where to; its folder must exist.
        images: Intensities, 0 outside the brain, LPS, shape ``(M, H, W, Z)``.
        labels: Classes 0 background, 1 NCR, 2 ED, 3 ET, shape ``(H, W, Z)``.
        case_id: For the caption.
        modalities: Names of the M images.
        volumes: Milliliters of each region, for the caption.
        absent: Modalities that the network did not see, for the caption.
        spacing: Size of a voxel in mm, of which the shape of the picture follows.

    Raises:
        OSError: If the file cannot be written; nothing is left of it then.
    """
    shown = _chosen_slice(images, labels, modalities)
    panels = []
    for name, image in shown.images.items():
        panel = _Panel(image, spacing)
        panel.outline_regions(shown.cut(labels))
        panels.append(panel.labelled(TITLES.get(name, name)))
    canvas = _sheet([panels], below=(3 if absent else 2) * _LINE + 2 * _PADDING)
    names = [TITLES.get(name, name) for name in absent]
    _caption(canvas, case_id, f"axial slice {shown.depth}", volumes, names)
    with replacing(path) as temporary:
        canvas.save(temporary, "PNG")


def save_overlay(
    path: Path,
    images: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    *,
    case_id: str,
    modalities: Sequence[str],
    note: str = "",
    spacing: Spacing = _ISOTROPIC,
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
        spacing: Size of a voxel in mm, of which the shape of the picture follows.

    Raises:
        ValueError: If the shapes do not fit.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    _check_shapes(images, prediction, reference, modalities)
    shown = _chosen_slice(images, prediction if reference is None else reference, modalities)
    columns = {"image": None, "reference": reference, "prediction": prediction}
    if reference is None:
        del columns["reference"]
    rows: list[list[Image.Image]] = []
    for name, image in shown.images.items():
        rows.append([])
        for column, labels in columns.items():
            panel = _Panel(image, spacing)
            if labels is not None:
                panel.fill_classes(shown.cut(labels))
            rows[-1].append(panel.labelled(f"{TITLES.get(name, name)}  {column}"))
    canvas = _sheet(rows, above=2 * _LINE + 2 * _PADDING, below=_LINE + 2 * _PADDING)
    title = f"{case_id}   axial slice {shown.depth}" + (f"   ({note})" if note else "")
    _headline(canvas, title, _scores(prediction, reference))
    _legend(canvas)
    with replacing(path) as temporary:
        canvas.save(temporary, "PNG")


@dataclass(frozen=True)
class _Slice:
    """The axial slice of a case that is shown, and what of it.

    Attributes:
        depth: Its number.
        window: Rows and columns of the brain, with a margin.
        images: Modality to intensities within the window, of those that are shown.
    """

    depth: int
    window: tuple[slice, slice]
    images: Mapping[str, np.ndarray]

    def cut(self, labels: np.ndarray) -> np.ndarray:
        """The shown part of a volume, ``(H, W, Z)`` -> ``(h, w)``."""
        return labels[..., self.depth][self.window]


def _chosen_slice(images: np.ndarray, labels: np.ndarray, modalities: Sequence[str]) -> _Slice:
    """The slice with the largest lesion, or with the largest brain where there is no lesion."""
    areas = np.count_nonzero(labels, (0, 1))
    if not areas.any():
        areas = np.count_nonzero(images[0], (0, 1))
    depth = int(areas.argmax())
    window = _brain_window(images[..., depth])
    by_name = dict(zip(modalities, images, strict=True))
    shown = {name: by_name[name][..., depth][window] for name in shown_modalities(modalities)}
    return _Slice(depth, window, shown)


def _brain_window(slices: np.ndarray) -> tuple[slice, slice]:
    """Box of the brain and a margin in a slice of all modalities, ``(M, H, W)``."""
    brain = (slices != 0).any(0)
    window = []
    for axis in (0, 1):
        hit = np.flatnonzero(brain.any(1 - axis))
        low, high = (hit[0], hit[-1] + 1) if hit.size else (0, brain.shape[axis])
        window.append(slice(max(low - _MARGIN, 0), high + _MARGIN))
    return window[0], window[1]


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


class _Panel:
    """A square picture of one slice.

    Args:
        image: Intensities, LPS, shape ``(h, w)``.
        spacing: Size of a voxel in mm.
    """

    def __init__(self, image: np.ndarray, spacing: Spacing) -> None:
        # Arrays are LPS: transposed, rows run to posterior and columns to the patient's left.
        gray = Image.fromarray((gray_levels(image).T * 255).astype(np.uint8))
        lengths = (gray.width * spacing[0], gray.height * spacing[1])  # mm
        self._size = (
            round(_SIDE * lengths[0] / max(lengths)),
            round(_SIDE * lengths[1] / max(lengths)),
        )
        self._corner = ((_SIDE - self._size[0]) // 2, (_SIDE - self._size[1]) // 2)
        self._picture = Image.new("RGB", (_SIDE, _SIDE), _BACKGROUND)
        self._picture.paste(gray.resize(self._size, Image.Resampling.BICUBIC), self._corner)

    def outline_regions(self, labels: np.ndarray) -> None:
        """Draw the borders of the regions."""
        for region, color in REGION_COLORS.items():
            self._outline(region_mask(labels, region), color, outside=region == "TC")

    def fill_classes(self, labels: np.ndarray) -> None:
        """Give each class its color, through which the image shines, and an outer border."""
        for name, index in _CLASSES.items():
            self._fill(labels == index, COLORS[name])
        for name, region in (("ED", "WT"), ("ET", "TC")):  # what each of the two encloses
            self._outline(region_mask(labels, region), COLORS[name])
        self._outline(labels == _CLASSES["NCR"], COLORS["NCR"])

    def labelled(self, title: str) -> Image.Image:
        """The picture with a title in its corner and the patient's sides."""
        draw, font = ImageDraw.Draw(self._picture), _font(14)
        draw.text((8, 6), title, _FAINT, font)
        draw.text((8, _SIDE // 2), "R", _FAINT, font)
        draw.text((_SIDE - 8, _SIDE // 2), "L", _FAINT, font, anchor="ra")
        return self._picture

    def _fill(self, inside: np.ndarray, color: str) -> None:
        opacity = Image.fromarray((inside.T * round(255 * _OPACITY)).astype(np.uint8))
        opacity = opacity.resize(self._size, Image.Resampling.NEAREST)
        self._picture.paste(color, self._corner, opacity)

    def _outline(self, inside: np.ndarray, color: str, *, outside: bool = False) -> None:
        """Draw the inner border of a mask, ``(h, w)``, or the outer one."""
        if not inside.any():
            return
        size = (self._size[0] * _FINE, self._size[1] * _FINE)
        mask = Image.fromarray(inside.T.astype(np.uint8) * 255)
        mask = mask.resize(size, Image.Resampling.BICUBIC)
        voxel = size[0] / inside.shape[0]
        # The border of a mask is a level of its blurred picture; a single voxel still reaches 118.
        levels = mask.filter(ImageFilter.GaussianBlur(voxel / 2))
        low, high = (25, 110) if outside else (110, 230)
        opacity = levels.point([255 * (low <= level < high) for level in range(256)])
        self._picture.paste(color, self._corner, opacity.reduce(_FINE))


def _sheet(rows: Sequence[Sequence[Image.Image]], *, above: int = 0, below: int = 0) -> Image.Image:
    """Panels in rows, with room for text."""
    size = (len(rows[0]) * _SIDE, above + len(rows) * _SIDE + below)
    canvas = Image.new("RGB", size, _BACKGROUND)
    for i, row in enumerate(rows):
        for k, panel in enumerate(row):
            canvas.paste(panel, (k * _SIDE, above + i * _SIDE))
    return canvas


def _caption(
    canvas: Image.Image,
    case_id: str,
    place: str,
    volumes: Mapping[str, float],
    absent: Sequence[str],
) -> None:
    draw, right = ImageDraw.Draw(canvas), canvas.width - _PADDING
    y = _SIDE + _PADDING
    draw.text((right, y), place, _FAINT, _font(14), anchor="ra")
    room = right - 2 * _PADDING - draw.textlength(place, _font(14))
    draw.text((_PADDING, y - 2), _shortened(draw, case_id, room), _TEXT, _font(17))
    x: float = _PADDING
    for region, color in REGION_COLORS.items():
        text = f"{region} {volumes[region]:.1f} ml"
        draw.text((x, y + _LINE), text, color, _font(15))
        x += draw.textlength(text, _font(15)) + 2 * _PADDING
    if absent:
        text = f"absent, replaced by zeros: {', '.join(absent)}"
        draw.text((_PADDING, y + 2 * _LINE), text, _TEXT, _font(14))


def _headline(canvas: Image.Image, title: str, scores: str) -> None:
    draw, middle = ImageDraw.Draw(canvas), canvas.width / 2
    title = _shortened(draw, title, canvas.width - 2 * _PADDING)
    draw.text((middle, _PADDING), title, _TEXT, _font(17), anchor="ma")
    draw.text((middle, _PADDING + _LINE), scores, _TEXT, _font(14), anchor="ma")


def _legend(canvas: Image.Image) -> None:
    draw, y = ImageDraw.Draw(canvas), canvas.height - _PADDING - _LINE
    texts = {name: f"{CLASS_NAMES[index]} ({name})" for name, index in _CLASSES.items()}
    widths = [_LINE + draw.textlength(text, _font(14)) + 2 * _PADDING for text in texts.values()]
    x = (canvas.width - sum(widths)) / 2
    for (name, text), width in zip(texts.items(), widths, strict=True):
        draw.rectangle((x, y + 3, x + 12, y + 15), getrgb(COLORS[name]))
        draw.text((x + _LINE, y), text, _TEXT, _font(14))
        x += width


def _scores(prediction: np.ndarray, reference: np.ndarray | None) -> str:
    if reference is None:
        return "no reference"
    scores = []
    for region in REGION_NAMES:
        found, wanted = region_mask(prediction, region), region_mask(reference, region)
        total = np.count_nonzero(found) + np.count_nonzero(wanted)
        dice = 2 * np.count_nonzero(found & wanted) / total if total else 1.0
        scores.append(f"{region} {dice:.3f}")
    return "Dice of the volume   " + "   ".join(scores)


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
