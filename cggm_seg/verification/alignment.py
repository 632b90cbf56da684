"""Alignment of a label map with the images that it belongs to."""

from collections.abc import Sequence

import numpy as np
from scipy import fft

FARTHEST = 15
"""Voxels along an axis up to which the place of a displaced label map is told."""

_REACH = 2  # voxels
_STEPS = range(-_REACH, _REACH + 1)
_FEWEST = 200  # voxels of lesion; borders of fewer are noise
_GAIN = 1.01  # factor by which a neighboring place must explain the intensities better
_FAR_GAIN = 1.5  # the same for a place farther away, where a lesion may resemble healthy tissue
_COARSE = 3  # voxels between those of a first look at places farther away
_CLEAR = 0.08  # share of the variance that the right place explains at least


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
) -> tuple[int, int, int] | None:
    """By how many voxels the label map would have to move to fit the images best, per axis.

    What moves is compared by the variance of the intensities, in and around the lesion, that the
    classes explain, summed over the images: it is largest where the borders of the classes are
    those of the images. The places next to it are compared first, along each axis, and every third
    one within reach; only where one of these is better, all within reach are.

    On simulated cases of BraTS size a shift by one voxel is found along every axis. Not found
    are errors of less than half a voxel, label maps without visible borders and lesions under 200
    voxels.

    Args:
        images: Intensities, background exactly 0, each of shape ``(H, W, Z)``.
        classes: Classes, 0 background, of the same shape.
        lesion: Positions of the others, see :func:`lesion_voxels`.

    Returns:
        ``(0, 0, 0)`` where no other place is better; ``None`` where others are, but none within
        :data:`FARTHEST` voxels is clearly the right one.
    """
    if lesion.size < _FEWEST:
        return 0, 0, 0
    if not any(_neighboring_shift(images, classes, lesion)):
        coarse = [image[::_COARSE, ::_COARSE, ::_COARSE] for image in images]
        fits = _fits(coarse, classes[::_COARSE, ::_COARSE, ::_COARSE], FARTHEST // _COARSE)
        if fits.max() <= _FAR_GAIN * fits[0, 0, 0]:
            return 0, 0, 0
    fits = _fits(images, classes, FARTHEST + 1)
    place = np.unravel_index(fits.argmax(), fits.shape)
    along_h, along_w, along_z = (
        int(k) - (size if k > size // 2 else 0) for k, size in zip(place, fits.shape, strict=True)
    )
    # A place at the edge of the search is the best of those searched, not the best.
    if max(map(abs, (along_h, along_w, along_z))) > FARTHEST or fits.max() < _CLEAR:
        return None
    return along_h, along_w, along_z


def _fits(images: Sequence[np.ndarray], classes: np.ndarray, reach: int) -> np.ndarray:
    """Share of the variance that the label map explains at every place within reach.

    Sums over the moved classes are correlations, which Fourier transforms compute for all places.

    Returns:
        Shape ``(2 reach + 1,) * 3``, from no shift on, negative shifts last.
    """
    places = np.nonzero(classes)
    box = tuple(slice(max(int(p.min()) - reach, 0), int(p.max()) + 1 + reach) for p in places)
    near = classes[box]
    values = _standardized([image[box].ravel() for image in images]).reshape(-1, *near.shape)
    shape = [fft.next_fast_len(size + reach, real=True) for size in near.shape]
    spectra = fft.rfftn(values, shape, axes=(1, 2, 3))
    around = np.ix_(*[np.r_[: reach + 1, -reach:0]] * 3)
    groups = []
    for label in range(1, int(near.max()) + 1):
        spectrum = fft.rfftn((near == label).astype(np.float32), shape).conj()
        products = (fft.irfftn(one * spectrum, shape)[around] for one in spectra)
        groups.append(np.stack([*products]))
    whole = values.sum(axis=(1, 2, 3), dtype=np.float64)[:, None, None, None]
    groups.append(whole - np.sum(groups, axis=0))
    explained = sum(np.square(g[:-1]).sum(axis=0) / np.maximum(g[-1], 1) for g in groups)
    return np.asarray(explained / max(float(np.square(values[:-1]).sum()), 1))


def _neighboring_shift(
    images: Sequence[np.ndarray], classes: np.ndarray, lesion: np.ndarray
) -> tuple[int, int, int]:
    """The best place up to two voxels along each axis, each searched on its own."""
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
