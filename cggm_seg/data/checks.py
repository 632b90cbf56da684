"""What the voxels of a case must satisfy, for training, inference and verification alike."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.nifti import Volume

_AFFINE_TOLERANCE = 9e-4  # below 0.001, so that this is found in float32 as well


def intensity_findings(case_id: str, file: Path, array: np.ndarray) -> Iterator[Finding]:
    """What is wrong with the intensities of an image: NaN, Inf, or a single one besides zero."""
    low, high = array.min(), array.max()
    fix = "Export the image again, or leave the case out."
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(array))
        what = f"Expected finite intensities, but found NaN or Inf in {count} of them."
        yield Finding(Code.NOT_FINITE, case_id, file, what, fix)
    elif low == 0 == high:
        what = "Expected an image, but all voxels are zero."
        yield Finding(Code.EMPTY, case_id, file, what, fix)
    elif _is_mask(array[::4, ::4, ::4], low, high) and _is_mask(array, low, high):
        what = f"Expected an image, but all voxels are 0 or {high or low:g}."
        yield Finding(Code.CONSTANT, case_id, file, what, fix)


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
    return bool(0 in (low, high) or low == high) and bool(((array == low) | (array == high)).all())
