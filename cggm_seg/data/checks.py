"""Checks that the voxels of a case must pass, in training, inference and verification alike."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.nifti import Volume
from cggm_seg.data.preprocessing import background_value, intensity_limits, without_background

LARGEST_BRAIN = 2500
"""Milliliters; adult brains have up to 1700 with their fluid, heads in MR from 3500."""

LARGEST_INTENSITY = 1e30
"""Far above anything measured, and far enough from where single precision ends."""

_FAINT = 1e-3  # of a bright intensity; no tissue is that dark, suppressed fluid neither
_MOST_FAINT = 0.02
_AFFINE_TOLERANCE = 9e-4  # below 0.001, so that this is found in float32 as well


def intensity_findings(case_id: str, file: Path, volume: Volume) -> Iterator[Finding]:
    """What is wrong with the intensities of an image: the first error, or warnings.

    Args:
        case_id: Named in the findings.
        file: Named in the findings.
        volume: What the file holds.
    """
    array = volume.array
    low, high = float(array.min()), float(array.max())
    fix = "Export the image again, or leave the case out."
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(array))
        what = f"Expected finite intensities, but found NaN or Inf in {count} of them."
        yield Finding(Code.NOT_FINITE, case_id, file, what, fix)
    elif not 1 / LARGEST_INTENSITY <= (max(high, -low) or 1) <= LARGEST_INTENSITY:
        what = (
            f"Expected intensities of at most {LARGEST_INTENSITY:g}, and not all of them below "
            f"{1 / LARGEST_INTENSITY:g}, but found {low:g} to {high:g}."
        )
        fix = "Scale the image, or leave the case out."
        yield Finding(Code.MAGNITUDE, case_id, file, what, fix)
    elif low == 0 == high:
        what = "Expected an image, but all voxels are zero."
        yield Finding(Code.EMPTY, case_id, file, what, fix)
    elif _is_mask(array[::4, ::4, ::4], low, high) and _is_mask(array, low, high):
        values = f"{high:g}" if low == high else f"{low:g} or {high:g}"
        what = f"Expected an image, but all voxels are {values}."
        yield Finding(Code.CONSTANT, case_id, file, what, fix)
    else:
        yield from _background_findings(case_id, file, volume)


def _background_findings(case_id: str, file: Path, volume: Volume) -> Iterator[Finding]:
    value = background_value(volume.array)
    if value is None:
        what = (
            "Expected a background of one value around the brain, but the border of the volume "
            "has many."
        )
        fix = (
            "Strip the skull and set what is outside the brain to 0, before any scaling, as the "
            "images of BraTS are."
        )
        yield Finding(Code.BACKGROUND, case_id, file, what, fix)
        return
    milliliters = np.count_nonzero(volume.array != value) * np.prod(volume.grid.spacing) / 1000
    if milliliters > LARGEST_BRAIN:
        what = (
            f"Expected a brain of at most {LARGEST_BRAIN} ml, but {milliliters:.0f} ml are not "
            f"background ({value:g})."
        )
        fix = "Strip the skull, and check the size of the voxels in the header."
        yield Finding(Code.NOT_STRIPPED, case_id, file, what, fix)
        return
    faint = _share_of_faint(volume.array[::2, ::2, ::2], value)
    if faint > _MOST_FAINT:
        what = (
            f"Expected a background of one value ({value:g}) around the brain, but {faint:.0%} of "
            "the other voxels are next to it: faint noise, or ringing of a resampling, which "
            "counts as brain."
        )
        fix = "Set what is outside the brain to the value of the background."
        yield Finding(Code.BACKGROUND, case_id, file, what, fix)
        return
    yield from _extreme_findings(case_id, file, volume.array, value)


def _share_of_faint(array: np.ndarray, background: float) -> float:
    """Share of what is not background that differs from it by next to nothing."""
    distances = np.abs(without_background(array, background)[array != background])
    if not distances.size:
        return 0.0
    bright = np.percentile(distances, 90)  # of the brain, though most of the voxels were noise
    return np.count_nonzero(distances < bright * _FAINT) / distances.size


def _extreme_findings(
    case_id: str, file: Path, array: np.ndarray, background: float
) -> Iterator[Finding]:
    limits = intensity_limits(without_background(array, background))
    if limits is None:
        return
    low, high = limits[0] + background, limits[1] + background
    outside = array[(array != background) & ((array < low) | (array > high))]
    farthest = max(outside.min(), outside.max(), key=lambda x: abs(x - low))
    what = (
        f"Expected no single voxels far from all others, but found {outside.size} up to "
        f"{farthest:g} beside a brain from {low:g} to {high:g}."
    )
    fix = "They are clipped to that range; look at the image, and mend it if it means them."
    yield Finding(Code.EXTREME, case_id, file, what, fix)


def geometry_findings(case_id: str, file: Path, volume: Volume, other: Volume) -> Iterator[Finding]:
    """How shape or affine of a volume differ from those of another one of its case."""
    if volume.array.shape != other.array.shape:
        what = (
            f"Expected shape {other.array.shape} as of other images of the case, "
            f"but found {volume.array.shape}."
        )
        fix = "Resample all images of a case to one grid."
        yield Finding(Code.SHAPE, case_id, file, what, fix)
    affine, expected = volume.grid.affine, other.grid.affine
    if not np.allclose(affine, expected, rtol=0, atol=_AFFINE_TOLERANCE):
        what = (
            f"Expected the affine of other images of the case, {expected.tolist()}, "
            f"but found {affine.tolist()}."
        )
        fix = "Register all images of a case to one grid."
        yield Finding(Code.AFFINE, case_id, file, what, fix)


def _is_mask(array: np.ndarray, low: float, high: float) -> bool:
    return bool(((array == low) | (array == high)).all())
