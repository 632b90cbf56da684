"""Preprocessing, from raw intensities to z-scores of the brain, of training and inference alike.

Everything after :func:`prepare_image` tells the background by its value, exactly 0, and the brain
by any other value.
"""

import numpy as np

_SHARE_OF_EDGES = 0.95  # of the voxels along the edges of a volume, which no brain reaches
_SHARE_OF_ANOTHER = 0.1  # of the border; a brain that is cut off there has many values, none often
_EXTREME_SHARE = 1e-3  # of the brain: brighter than vessels are only artifacts
_FEWEST_EXTREMES = 10  # voxels
_FAR = 15  # deviations of the other voxels, within which a voxel may be what it seems
_FARTHEST = 200  # deviations, beyond which a voxel is an artifact whatever it does to the variance
_LIMIT = np.iinfo(np.int16).max


def prepare_image(image: np.ndarray) -> np.ndarray:
    """The same image with a background of exactly 0 and without extreme intensities.

    Args:
        image: Intensities of one modality, shape ``(H, W, Z)``.

    Returns:
        The image itself where it is so already.
    """
    image = without_background(image, background_value(image))
    limits = intensity_limits(image)
    if limits is not None:
        image = np.where(image != 0, np.clip(image, *limits), 0).astype(image.dtype)
    return image


def background_value(image: np.ndarray) -> float | None:
    """The value that surrounds the brain, ``None`` where no single one does.

    It is the most frequent one on the border of the volume: 0 in skull-stripped images as they are
    distributed, something else in those that were z-scored or shifted as a whole. Noise around the
    head, or a head that was not skull-stripped, leaves no single value.

    Args:
        image: Intensities of one modality, shape ``(H, W, Z)``.
    """
    faces = [np.moveaxis(image, axis, 0)[end] for axis in range(3) for end in (0, -1)]
    border = np.concatenate([face.ravel() for face in faces])
    zeros = border.size - np.count_nonzero(border)
    value, second = 0.0, float(1 - zeros / border.size)
    if second > _SHARE_OF_ANOTHER:  # sorting takes long: only where it is needed
        values, counts = np.unique(border, return_counts=True)
        order = np.argsort(counts)[::-1]
        value = float(values[order[0]])
        second = float(counts[order[1]]) / border.size if counts.size > 1 else 0.0
    edges = np.concatenate([_edges(image, axis) for axis in range(3)])
    same = np.count_nonzero(edges == value) / edges.size
    return value if same >= _SHARE_OF_EDGES and second <= _SHARE_OF_ANOTHER else None


def without_background(image: np.ndarray, value: float | None) -> np.ndarray:
    """The image less its background, in a type that holds the difference.

    Args:
        image: Intensities of one modality.
        value: Of its background; nothing is changed where it is 0 or unknown.
    """
    if not value:
        return image
    if image.dtype.kind == "f":
        return np.asarray(image - image.dtype.type(value))
    if image.dtype.itemsize < 4:
        return image.astype(np.int32) - np.int32(value)
    return image - np.float64(value)


def intensity_limits(image: np.ndarray) -> tuple[float, float] | None:
    """Between which values an image is to be clipped, ``None`` where nothing is extreme in it.

    A thousandth of the voxels may not carry the greater part of the variance: one voxel of 1e7,
    from an interpolation or a broken coil, would make all others equal in z-scores. Vessels and
    enhancing tumors stay far below.

    Args:
        image: Intensities of one modality, background exactly 0, shape ``(H, W, Z)``.

    Returns:
        The lowest and the highest value of the others, those within 15 deviations among them.
    """
    step = max(1, min(image.shape) // 50)
    sample = image[::step, ::step, ::step]
    sample = sample[sample != 0]
    if sample.size < 10 * _FEWEST_EXTREMES:
        return None
    low, middle, high = np.percentile(sample, [25, 50, 75])
    reach = max(float(image.max()) - middle, middle - float(image.min()))
    if reach <= _FAR * (high - low) / 1.349:  # no voxel is far enough to matter
        return None
    flat = image.ravel(order="K")  # selects 4 times faster than a 3-D array
    brain = flat[flat != 0].astype(np.float64)
    distance = np.abs(brain - middle)
    few = max(_FEWEST_EXTREMES, int(_EXTREME_SHARE * brain.size))
    kept = brain[distance <= np.partition(distance, brain.size - few - 1)[brain.size - few - 1]]
    deviation = kept.std()
    if deviation >= 0.8 * brain.std() and distance.max() <= _FARTHEST * deviation:
        return None
    others = brain[distance <= max(_FAR * deviation, np.abs(kept - middle).max())]
    return (float(others.min()), float(others.max())) if deviation else None


def _edges(image: np.ndarray, axis: int) -> np.ndarray:
    """The four edges of a volume that run along an axis."""
    along = np.moveaxis(image, axis, 0)
    return along[:, [0, 0, -1, -1], [0, -1, 0, -1]].ravel()


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


def to_int16(
    images: np.ndarray, statistics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intensities as int16, for storage: ``value * scale + offset`` where a value is not 0.

    Integers that fit are kept. Others are divided by a scale per modality that resolves at least
    a hundredth of its standard deviation; values beyond 32767 scales, at least 327 deviations,
    are clipped. A modality whose mean is more than 100 deviations away from 0 is moved there
    first, or nothing would be left of it. Non-zero voxels stay non-zero.

    Args:
        images: Intensities, background exactly 0, shape ``(M, ...)``.
        statistics: Their mean and standard deviation per modality, shape ``(M, 2)``.

    Returns:
        Int16 values of the same shape, and scales and offsets, float64, shape ``(M,)`` each.
    """
    scales, offsets = np.ones(len(images)), np.zeros(len(images))
    if images.dtype.kind in "iu" and images.min() >= -_LIMIT and images.max() <= _LIMIT:
        return images.astype(np.int16, copy=False), scales, offsets
    values = np.zeros_like(images, np.int16)
    for k, (image, (mean, deviation)) in enumerate(zip(images, statistics, strict=True)):
        if deviation and abs(mean) > 100 * deviation:
            scales[k], offsets[k] = _far_scale(image)
            scaled = np.rint((image - offsets[k]) / scales[k])
            values[k] = np.where(image != 0, np.clip(scaled, 1, _LIMIT), 0)
            continue
        widest = max(abs(float(image.min())), abs(float(image.max()))) / _LIMIT
        scales[k] = min(widest, deviation / 100) or widest or 1.0
        scaled = np.clip(np.rint(image / scales[k]), -_LIMIT, _LIMIT)
        values[k] = np.where((scaled == 0) & (image != 0), np.sign(image), scaled)
    return values, scales, offsets


def rounding_errors(
    images: np.ndarray,
    statistics: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
) -> np.ndarray:
    """By how much :func:`to_int16` changed each modality at most, in its deviations, ``(M,)``.

    Args:
        images: What was stored, shape ``(M, ...)``.
        statistics: As given to :func:`to_int16`.
        values: What it returned.
        scales: Likewise.
        offsets: Likewise.
    """
    errors = np.zeros(len(images))
    if images.dtype.kind in "iu" and (scales == 1).all() and not offsets.any():
        return errors  # kept as they are
    for k, image in enumerate(images):
        brain = image != 0
        if statistics[k, 1]:
            stored = values[k][brain] * scales[k] + offsets[k]
            errors[k] = np.abs(stored - image[brain]).max() / statistics[k, 1]
    return errors


def _far_scale(image: np.ndarray) -> tuple[float, float]:
    """Scale and offset that map the values of a brain to 1 to 32767."""
    brain = image[image != 0]
    low, high = float(brain.min()), float(brain.max())
    scale = (high - low) / (_LIMIT - 1)
    return scale, low - scale


def zscore(images: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Z-scores; the background, exactly 0 before, is exactly 0 after.

    A constant modality becomes 0 everywhere.

    Args:
        images: Intensities, background exactly 0, shape ``(M, ...)``.
        statistics: Mean and standard deviation of each modality, shape ``(M, 2)``.

    Returns:
        Float32, shape ``(M, ...)``.
    """
    shape = (2, -1, *[1] * (images.ndim - 1))
    mean, deviation = statistics.astype(np.float32).T.reshape(shape)
    if (np.abs(statistics[:, 0]) > 1000 * statistics[:, 1]).any():
        # Single precision would leave little of a small contrast far from zero.
        scores = (images - statistics[:, 0].reshape(shape[1:])).astype(np.float32)
    else:
        scores = images.astype(np.float32)
        scores -= mean
    scores *= np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    scores[images == 0] = 0
    return scores


def _span(indices: np.ndarray) -> slice:
    return slice(int(indices[0]), int(indices[-1]) + 1)
