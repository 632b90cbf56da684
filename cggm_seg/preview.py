"""A small picture of each prediction, drawn in milliseconds, to leaf through a cohort."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
    :func:`cggm_seg.overlay.save_overlay`.

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
