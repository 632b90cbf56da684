"""From raw intensities to z-scores of the brain: what training and inference share."""

import numpy as np


def brain_box(images: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around the voxels that are non-zero in any modality.

    Args:
        images: Skull-stripped intensities, background exactly 0, shape ``(M, H, W, Z)``.

    Raises:
        ValueError: If all voxels are zero.
    """
    brain = images[0] != 0
    for image in images[1:]:
        brain |= image != 0
    plane, depth = brain.any(axis=2), brain.any(axis=0).any(axis=0)
    rows, columns, slices = (np.flatnonzero(x) for x in (plane.any(1), plane.any(0), depth))
    if not slices.size:
        raise ValueError("Expected a brain, but all voxels are zero.")
    return _span(rows), _span(columns), _span(slices)


def intensity_statistics(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each modality over its own non-zero voxels.

    Args:
        images: Intensities, background exactly 0, shape ``(M, ...)``.

    Returns:
        Float64, shape ``(M, 2)``; zeros for a modality without a non-zero voxel.
    """
    statistics = np.zeros((len(images), 2))
    for row, image in zip(statistics, images, strict=True):
        flat = image.ravel(order="K")  # selects 4 times faster than a 3-D array
        values = flat[flat != 0].astype(np.float64)
        if values.size:
            row[0] = values.mean()
            values -= row[0]
            row[1] = np.sqrt(np.square(values, out=values).mean())
    return statistics


def to_int16(images: np.ndarray, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intensities as int16, for storage.

    Integers that fit are kept. Others are divided by a scale per modality that resolves at least
    a hundredth of its standard deviation; values beyond 32767 scales, at least 327 deviations,
    are clipped. Non-zero voxels stay non-zero.

    Args:
        images: Intensities, background exactly 0, shape ``(M, ...)``.
        statistics: Their mean and standard deviation per modality, shape ``(M, 2)``.

    Returns:
        Int16 values of the same shape, and the scales, float64, shape ``(M,)``.
    """
    limit = np.iinfo(np.int16).max
    if images.dtype.kind in "iu" and -limit <= images.min() and images.max() <= limit:
        return images.astype(np.int16, copy=False), np.ones(len(images))
    values, scales = np.zeros_like(images, np.int16), np.ones(len(images))
    for k, (image, (_, deviation)) in enumerate(zip(images, statistics, strict=True)):
        widest = max(abs(float(image.min())), abs(float(image.max()))) / limit
        scales[k] = min(widest, deviation / 100) or widest or 1.0
        scaled = np.clip(np.rint(image / scales[k]), -limit, limit)
        values[k] = np.where((scaled == 0) & (image != 0), np.sign(image), scaled)
    return values, scales


def zscore(images: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Z-scores; the background, exactly 0 before, is exactly 0 after.

    A constant modality becomes 0 everywhere.

    Args:
        images: Intensities, background exactly 0, shape ``(M, ...)``.
        statistics: Mean and standard deviation of each modality, shape ``(M, 2)``.

    Returns:
        Float32, shape ``(M, ...)``.
    """
    mean, deviation = statistics.astype(np.float32).T.reshape(2, -1, *[1] * (images.ndim - 1))
    scores = images.astype(np.float32)
    scores -= mean
    scores *= np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    scores[images == 0] = 0
    return scores


def _span(indices: np.ndarray) -> slice:
    return slice(int(indices[0]), int(indices[-1]) + 1)
