"""Alignment of a label map with the images that it belongs to."""

from collections.abc import Sequence

import numpy as np

_REACH = 2  # voxels
_STEPS = range(-_REACH, _REACH + 1)
_FEWEST = 200  # voxels of lesion; borders of fewer are noise
_GAIN = 1.01  # factor by which another place must explain the intensities better


def lesion_voxels(classes: np.ndarray) -> np.ndarray:
    """Where the lesion is: positions in ``classes.T.ravel()``, which files are laid out as."""
    return np.flatnonzero(classes.T.ravel() != 0)


def outside_share(images: Sequence[np.ndarray], lesion: np.ndarray) -> float:
    """Share of the lesion voxels in which every image is exactly zero.

    Args:
        images: Intensities, background exactly 0, each of shape ``(H, W, Z)``.
        lesion: At least one position, see :func:`lesion_voxels`.
    """
    brain = np.zeros(lesion.size, bool)
    for image in images:
        brain |= image.T.ravel()[lesion] != 0
    return 1 - float(brain.mean())


def best_shift(
    images: Sequence[np.ndarray], classes: np.ndarray, lesion: np.ndarray
) -> tuple[int, int, int]:
    """By how many voxels the label map would have to move to fit the images best, per axis.

    What moves is compared by the variance of the intensities, in and around the lesion, that the
    classes explain, summed over the images: it is largest where the borders of the classes are
    those of the images. Each axis is searched on its own, two voxels to either side.

    On simulated cases of BraTS size a shift by one voxel is found along every axis. Not found
    are errors of less than half a voxel, label maps without visible borders, lesions under 200
    voxels, and label maps that lie somewhere else altogether, unless by chance one of the
    neighboring places fits better, as it mostly does.

    Args:
        images: Intensities, background exactly 0, each of shape ``(H, W, Z)``.
        classes: Classes, 0 background, of the same shape.
        lesion: Positions of the others, see :func:`lesion_voxels`.

    Returns:
        ``(0, 0, 0)`` where no other place is better by more than one percent.
    """
    if lesion.size < _FEWEST:
        return 0, 0, 0
    # The neighborhood alone is compared, padded so that a shift never leaves it: moving the label
    # map is then adding an offset to positions in one flat array, for all images at once.
    box = _box(lesion, classes.shape)
    near = np.pad(classes[box].T, _REACH)
    values = _standardized([np.pad(image[box].T, _REACH).ravel() for image in images])
    places = [np.flatnonzero(near.ravel() == label) for label in range(1, int(near.max()) + 1)]
    whole = values.sum(axis=1)
    along_h, along_w, along_z = (
        _best([_explained(values, whole, places, step * stride) for step in _STEPS])
        for stride in (1, near.shape[2], near.shape[2] * near.shape[1])
    )
    return along_h, along_w, along_z


def _best(fits: Sequence[float]) -> int:
    best = int(np.argmax(fits))
    return _STEPS[best] if fits[best] > _GAIN * fits[_REACH] else 0


def _box(lesion: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Around the lesion, with twice the reach where the volume allows it."""
    places = np.unravel_index(lesion, shape[::-1])[::-1]
    margin = 2 * _REACH
    return tuple(
        slice(max(int(place.min()) - margin, 0), int(place.max()) + 1 + margin) for place in places
    )


def _standardized(images: Sequence[np.ndarray]) -> np.ndarray:
    """Z-scores of the brain, 0 outside, and 1 in the brain, float32, shape ``(M + 1, V)``."""
    brain = np.flatnonzero(np.logical_and.reduce([image != 0 for image in images]))
    values = np.zeros((len(images) + 1, images[0].size), np.float32)
    values[-1, brain] = 1
    for row, image in zip(values, images, strict=False):
        inside = image[brain].astype(np.float32)
        deviation = inside.std() if brain.size else 0
        if deviation:
            row[brain] = (inside - inside.mean()) / deviation
    return values


def _explained(
    values: np.ndarray, whole: np.ndarray, places: Sequence[np.ndarray], offset: int
) -> float:
    """Sum of squares between the classes, background included, with the label map moved."""
    sums = [np.take(values, place + offset, axis=1).sum(axis=1) for place in places]
    groups = [*sums, whole - np.sum(sums, axis=0)]
    # Squared sum over count of each group is the variance between groups, up to a constant that
    # no shift changes; the last row counts the voxels.
    return float(sum(np.square(group[:-1]).sum() / max(group[-1], 1) for group in groups))
