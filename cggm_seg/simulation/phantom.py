"""One simulated case: four contrasts and glioma-like lesions on a bent ICBM152 anatomy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from cggm_seg.simulation.template import (
    FULL_SHAPE,
    Axes,
    Pose,
    Tissue,
    bent_voxels,
    box_around,
    brain_extent,
    load_template,
    random_pose,
    sample_tissue,
    smooth_field,
)

Contrasts = Mapping[str, Mapping[str, float]]
LesionKind = Literal["large", "small"]

CONTRASTS: Contrasts = {
    "flair": {"csf": 150, "gm": 520, "wm": 440, "ncr": 800, "ed": 920, "et": 860},
    "t1ce": {"csf": 200, "gm": 470, "wm": 660, "ncr": 210, "ed": 470, "et": 1020},
    "t1": {"csf": 200, "gm": 470, "wm": 680, "ncr": 340, "ed": 480, "et": 450},
    "t2": {"csf": 960, "gm": 520, "wm": 390, "ncr": 1040, "ed": 700, "et": 660},
}
"""Mean intensity per modality and tissue or lesion class, before texture, bias field and noise.

FLAIR shows the whole lesion, T2 does so against white matter. Only T1ce tells the enhancing rim
from edema; T1ce and T2 tell the necrotic core from edema. T1 adds little.
"""

NOISE = 22.0
"""Standard deviation of the Rician noise, in the units of :data:`CONTRASTS`."""

_LABELS = {"ncr": 1, "ed": 2, "et": 4}
_TEXTURE = {"flair": 0.3, "t1ce": 0.9, "t1": 1.0, "t2": -0.6}  # weight of the real T1's detail


@dataclass(frozen=True)
class LesionModel:
    """What the lesions of a cohort are like.

    Args:
        radii: Smallest and largest mean radius in mm, edema included: of the lesion that each case
            has, and of the second one that one case of five has.
        edema: Least thickness of the edema in mm; larger lesions have more.
        rim: Least thickness of the enhancing rim in mm, likewise.
        contrasts: Mean intensity per modality and tissue or lesion class.
        et_free_share: Share of the cases without enhancing tumor, spread evenly over a cohort.
        shape: Voxels per axis that a cohort has unless told otherwise.
        cases: Cases that a cohort has unless told otherwise.
    """

    radii: tuple[tuple[float, float], tuple[float, float]]
    edema: float
    rim: float
    contrasts: Contrasts
    et_free_share: float
    shape: tuple[int, int, int]
    cases: int


# At 2 mm a core is a few voxels wide and its rim three or four, so that little of a slice teaches
# them. The rim is a third brighter than white matter in T1ce, that of large lesions half as bright
# again. All small lesions enhance, so that few cases suffice to judge the enhancing tumor.
_FAINT_RIM = {**CONTRASTS["t1ce"], "et": CONTRASTS["t1ce"]["wm"] * 4 / 3}
LESIONS: dict[LesionKind, LesionModel] = {
    "large": LesionModel(((20, 28), (14, 18)), 6.8, 5.2, CONTRASTS, 0.15, FULL_SHAPE, 16),
    "small": LesionModel(
        ((23, 28), (21, 23)), 8.0, 7.0, {**CONTRASTS, "t1ce": _FAINT_RIM}, 0.0, (120, 120, 78), 8
    ),
}
"""Kinds of lesions. The cores of small ones measure 5 to 10 voxels of 2 mm in radius."""


@dataclass(frozen=True)
class _Lesion:
    """Position of the center; mean radius, thickness of edema and least of the rim, all in mm."""

    center: np.ndarray
    radius: float
    edema: float
    rim: float


def simulate_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    enhancing: bool,
    model: LesionModel = LESIONS["large"],
) -> dict[str, np.ndarray]:
    """Draws one case.

    Args:
        rng: Source of all randomness.
        shape: Voxels per axis of the field of view of 240 mm x 240 mm x 155 mm.
        enhancing: Whether the lesions have an enhancing rim.
        model: What the lesions are like.

    Returns:
        ``flair``, ``t1ce``, ``t1``, ``t2`` as int16, 0 outside the brain and positive inside, and
        ``seg`` as uint8 with the labels 0, 1 (NCR), 2 (ED), 4 (ET), all LPS and of shape `shape`.

    Raises:
        UserError: If nilearn, which ships the anatomy, is not installed.
    """
    axes, box = brain_extent(shape)
    pose = random_pose(rng)
    lesions = _place_lesions(rng, pose, model)
    masses = [(lesion.center, lesion.radius) for lesion in lesions]
    tissue = sample_tissue(bent_voxels(rng, axes, pose, masses))
    white = _scatter(tissue.brain, tissue.wm)
    images = _healthy_images(tissue, model.contrasts)
    images["t1ce"] += 300 * _vessels(rng, axes) * (1 - white) ** 2
    labels = np.zeros(white.shape, np.uint8)
    for lesion in lesions:
        near, part = box_around(axes, lesion.center, 1.5 * lesion.radius + 8)
        layers = _layers(rng, lesion, near, white[part], enhancing)
        _drop_satellites(layers["ed"], tissue.brain[part])
        views = {name: volume[part] for name, volume in images.items()}
        _paint(rng, near, layers, labels[part], views, model.contrasts)
    volumes = {name: _acquire(rng, axes, v, tissue.brain) for name, v in images.items()}
    volumes["seg"] = labels * tissue.brain
    return {name: _embed(volume, box, shape) for name, volume in volumes.items()}


def _place_lesions(rng: np.random.Generator, pose: Pose, model: LesionModel) -> list[_Lesion]:
    """One lesion and, in one case of five, a smaller one apart from it."""
    lesions: list[_Lesion] = []
    least = model.radii[1][0]
    for low, high in model.radii[: 1 + (rng.random() < 0.2)]:
        radius = rng.uniform(low, high)
        edema = model.edema + rng.uniform(0, 0.1) * (radius - least)
        rim = model.rim + rng.uniform(0, 0.05) * (radius - least)
        for center in pose.position(rng.permutation(load_template().seeds)[:50]):
            gaps = [np.linalg.norm(center - o.center) - o.radius - radius for o in lesions]
            if min(gaps, default=np.inf) > 10:
                lesions.append(_Lesion(center, radius, edema, rim))
                break
    return lesions


def _healthy_images(tissue: Tissue, contrasts: Contrasts) -> dict[str, np.ndarray]:
    csf, gm, wm = tissue.csf, tissue.gm, tissue.wm
    expected = 60 * csf + 165 * gm + 220 * wm + 1  # mean T1 of the template's tissues
    texture = np.clip(tissue.t1 / expected - 1, -0.2, 0.2)
    images = {}
    for modality, mean in contrasts.items():
        flat = mean["csf"] * csf + mean["gm"] * gm + mean["wm"] * wm
        images[modality] = _scatter(tissue.brain, flat * (1 + _TEXTURE[modality] * texture))
    return images


def _vessels(rng: np.random.Generator, axes: Axes) -> np.ndarray:
    """Thin curved tubes, 1 on their axis: where two random fields cross zero together."""
    one, other = smooth_field(rng, axes, 11), smooth_field(rng, axes, 11)
    return np.asarray(np.exp(-(one**2 + other**2) / 0.02))


def _layers(
    rng: np.random.Generator, lesion: _Lesion, near: Axes, white: np.ndarray, enhancing: bool
) -> dict[str, np.ndarray]:
    """Depth in mm below the rough outer surface of each layer; edema prefers white matter."""
    stretch = np.exp(rng.normal(0, 0.1, 3))
    x, y, z = (
        np.square((axis - middle) / factor)
        for axis, middle, factor in zip(near, lesion.center, stretch, strict=True)
    )
    depth = lesion.radius - np.sqrt(x[:, None, None] + y[:, None] + z).astype(np.float32)
    depth += 0.1 * lesion.radius * smooth_field(rng, near, 15) + 0.7 * smooth_field(rng, near, 6)
    core = depth - lesion.edema - 0.02 * lesion.radius * np.abs(smooth_field(rng, near, 11))
    edema = depth + 2 * white
    if not enhancing:
        return {"ed": edema, "ncr": core}
    necrosis = core - lesion.rim - 0.02 * lesion.radius * np.abs(smooth_field(rng, near, 8))
    return {"ed": edema, "et": core, "ncr": necrosis}


def _drop_satellites(depth: np.ndarray, brain: np.ndarray) -> None:
    """Moves what is not connected to the largest part of a layer out of it, in place."""
    parts, count = ndimage.label((depth > 0) & brain)
    if count > 1:
        largest = np.bincount(parts.ravel())[1:].argmax() + 1
        depth[(parts > 0) & (parts != largest)] = -np.inf


def _paint(
    rng: np.random.Generator,
    near: Axes,
    layers: dict[str, np.ndarray],
    labels: np.ndarray,
    images: dict[str, np.ndarray],
    contrasts: Contrasts,
) -> None:
    """Draws the layers of one lesion, the outermost first, into views of the volumes."""
    grain = 1 + 0.06 * smooth_field(rng, near, 5)
    for name, depth in layers.items():
        labels[depth > 0] = _LABELS[name]
        blur = 2.5 if name == "ed" else 1.0  # mm
        share = np.clip(depth / blur + 0.5, 0, 1)
        for modality, image in images.items():
            image += share * (contrasts[modality][name] * grain - image)


def _acquire(
    rng: np.random.Generator, axes: Axes, image: np.ndarray, brain: np.ndarray
) -> np.ndarray:
    """Gain, bias field and Rician noise; int16, 0 outside the brain and at least 1 inside."""
    gain = rng.uniform(0.85, 1.15) * (1 + 0.07 * smooth_field(rng, axes, 80)[brain])
    real = image[brain] * gain + NOISE * rng.standard_normal(len(gain), dtype=np.float32)
    magnitude = np.hypot(real, NOISE * rng.standard_normal(len(gain), dtype=np.float32))
    return _scatter(brain, np.maximum(magnitude.round(), 1).astype(np.int16))


def _scatter(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    whole = np.zeros(mask.shape, values.dtype)
    whole[mask] = values
    return whole


def _embed(part: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, part.dtype)
    whole[box] = part
    return whole
