"""Viewer of volumes: three planes of an image with truth, prediction and their difference.

The viewer is a page of JavaScript over 2-D canvases. NiiVue, which nilearn ships, would weigh
2.3 MB in each report and needs WebGL 2; volumes would weigh more than here.
"""

import base64
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from cggm.reports import Section, asset, render
from cggm_seg.evaluation import CLASS_NAMES
from cggm_seg.pictures import COLORS, TITLES, gray_levels
from cggm_seg.reports.examples import Example

BUDGET = 6_000_000
"""Characters that the volumes of a report may take."""
_QUALITIES = (75, 50, 30, 15)
_EFFORT = 2  # of 6; more takes thrice the time for 7 % of the size
_MARGIN = 3  # voxels around the brain


@dataclass(frozen=True)
class _Mosaic:
    """Slices of a volume side by side in one picture."""

    columns: int
    picture: np.ndarray


def viewer_section(examples: Sequence[Example], note: str) -> Section:
    """The viewer with its volumes; says why where there are none.

    Images are lossy WebP of the box around the brain, label maps are exact.

    Args:
        examples: Cases in the order that they are offered in.
        note: Where the cases come from, or why there are none.
    """
    if not examples:
        return Section("Cases in three planes", Markup('<p class="note">{}</p>').format(note))
    encoded = next(
        cases
        for quality in _QUALITIES
        if _size(cases := [_encode(example, quality) for example in examples]) < BUDGET
        or quality == _QUALITIES[-1]
    )
    colors = [None, COLORS["NCR"], COLORS["ED"], COLORS["ET"]]
    data = {"cases": encoded, "classes": CLASS_NAMES, "colors": colors, "titles": TITLES}
    body = render(
        "viewer.html.jinja",
        "cggm_seg.reports",
        cases=encoded,
        modalities=[(name, TITLES.get(name, name)) for name in examples[0].images],
        classes=[*zip(CLASS_NAMES[1:], colors[1:], strict=True)],
        note=note,
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
    )
    return Section("Cases in three planes", body, asset("viewer.js", "cggm_seg.reports"))


def _size(cases: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(c["labels"]) + sum(map(len, c["images"].values())) for c in cases)


def _encode(example: Example, quality: int) -> dict[str, Any]:
    """A case as JSON: arrays run along the first axis fastest, then the second, then the third."""
    box = _box(example)
    labels = (example.truth | example.prediction << 4)[box].astype(np.uint8)
    images = {name: _mosaic(gray_levels(image[box])) for name, image in example.images.items()}
    return {
        "id": example.case_id,
        "role": example.role,
        "dice": round(example.dice, 3),
        "shape": labels.shape,
        "origin": [part.start for part in box],
        "spacing": [round(size, 4) for size in example.spacing],
        "start": _start(labels),
        "columns": next(iter(images.values())).columns,
        "images": {name: _webp(mosaic, quality) for name, mosaic in images.items()},
        "labels": base64.b64encode(gzip.compress(labels.tobytes("F"), 9, mtime=0)).decode(),
    }


def _box(example: Example) -> tuple[slice, ...]:
    """The box around brain and labels."""
    inside = (example.truth | example.prediction) > 0
    for image in example.images.values():
        inside = inside | (image != 0)
    box = []
    for axis, size in enumerate(inside.shape):
        hit = np.flatnonzero(inside.any(tuple(a for a in range(3) if a != axis)))
        low, high = (hit[0], hit[-1] + 1) if hit.size else (0, size)
        box.append(slice(max(0, int(low) - _MARGIN), min(size, int(high) + _MARGIN)))
    return tuple(box)


def _start(labels: np.ndarray) -> list[int]:
    """The middle of the lesion, or of the box without one."""
    voxels = np.argwhere(labels > 0)
    middle = np.median(voxels, 0) if len(voxels) else np.array(labels.shape) // 2
    return [int(index) for index in middle]


def _mosaic(volume: np.ndarray) -> _Mosaic:
    """Axial slices of gray levels 0-1 in rows, picture rows running along the first axis."""
    width, height, depth = volume.shape
    columns = math.ceil(math.sqrt(depth * height / width))
    rows = -(-depth // columns)
    picture = np.zeros((rows * height, columns * width), np.uint8)
    for z in range(depth):
        top, left = z // columns * height, z % columns * width
        picture[top : top + height, left : left + width] = 255 * volume[..., z].T
    return _Mosaic(columns, picture)


def _webp(mosaic: _Mosaic, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(mosaic.picture).save(file, "WEBP", quality=quality, method=_EFFORT)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
