"""Intensity statistics that tell which modality an image is, by the other cases of a cohort."""

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

import numpy as np

from cggm_seg.data import MODALITIES

FEWEST_CASES = 5
"""Complete cases from which on a cohort says how its modalities differ."""

_COUNT = len(MODALITIES)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TAIL = 0.001  # share of voxels in a tail: vessels, which T1ce alone shows bright
_SPLITS = (5, 8, 12)  # where quantiles, classes, correlations and tails end in the row of an image
_FEWEST_VOXELS = 5
_SMALLEST_SPREAD = 0.1  # a cohort of one scanner must not make every difference a large one
_FARTHEST = 25.0  # squared; one odd feature must not outweigh the others
_MARGIN = 1.0  # by how much another order must fit better, in squared spreads


def subsampled(image: np.ndarray) -> np.ndarray:
    """Every third voxel along each axis of an image of BraTS size, all voxels of a small one."""
    step = max(1, min(image.shape) // 50)
    return image[::step, ::step, ::step]


def modality_statistics(
    images: Sequence[np.ndarray], classes: np.ndarray | None
) -> list[list[float | None]]:
    """Statistics of each image that no gain or offset changes.

    Quantiles of healthy tissue, mean of NCR, ED and ET in its deviations, correlation with the
    other modalities, and the skewness of the differences from them, which tells T1ce from T1 by the
    vessels alone.

    Args:
        images: The modalities in the order of ``MODALITIES``, each of shape ``(H, W, Z)``.
        classes: Classes 0 to 3, of the same shape; all tissue counts as healthy without them.

    Returns:
        Sixteen numbers for each image; ``None`` where there are too few voxels to tell.
    """
    reduced = [subsampled(image).T.ravel() for image in images]
    brain = np.flatnonzero(np.logical_and.reduce([image != 0 for image in reduced]))
    scores = np.stack([image[brain] for image in reduced]).astype(np.float32)
    labels = np.zeros(brain.size, np.uint8)
    if classes is not None:
        labels = subsampled(classes).T.ravel()[brain]
    healthy = scores[:, labels == 0]
    if healthy.shape[1] < _FEWEST_VOXELS or not healthy.std(axis=1).all():
        return [[None] * (_SPLITS[-1] + _COUNT) for _ in images]
    mean, deviation = healthy.mean(axis=1, keepdims=True), healthy.std(axis=1, keepdims=True)
    healthy, scores = (healthy - mean) / deviation, (scores - mean) / deviation
    parts = [
        np.quantile(healthy, _QUANTILES, axis=1).T,
        np.stack([_class_means(scores, labels == label) for label in (1, 2, 3)], axis=1),
        np.corrcoef(healthy),
        _tails(healthy),
    ]
    rows = np.concatenate(parts, axis=1).tolist()
    return [[round(x, 4) if np.isfinite(x) else None for x in row] for row in rows]


def swapped_modalities(
    cohort: Mapping[str, Sequence[Sequence[float | None]]],
) -> dict[str, tuple[str, ...]]:
    """Cases in which another order of the modalities fits the cohort clearly better.

    A case is compared with the medians of all cases, in units of their spread, in each of the 24
    orders. On simulated cases any exchange of two modalities is found, without label maps all but
    some of T1 and T1ce in cases without ET. Not found is what affects half of the cohort or more,
    and anything in a cohort of fewer than five complete cases. An image from another scanner or
    protocol may look like another modality: hence a warning.

    Args:
        cohort: Case to the statistics of its images, see :func:`modality_statistics`.

    Returns:
        Case to the modalities that its ``flair``, ``t1ce``, ``t1`` and ``t2`` seem to be.
    """
    if len(cohort) < FEWEST_CASES:
        return {}
    statistics = np.array(list(cohort.values()), dtype=np.float64)  # (cases, modalities, features)
    parts = np.split(statistics, _SPLITS, axis=2)
    orders = list(permutations(range(_COUNT)))
    with np.errstate(invalid="ignore"):
        # Correlations and tails relate an image to the others: an order moves their columns, too.
        costs = np.sum([_costs(part, orders, pairs=k >= 2) for k, part in enumerate(parts)], axis=0)
    best = costs.argmin(axis=0)
    clear = costs[0] - costs.min(axis=0) > _MARGIN  # orders[0] is the one of the file names
    return {
        case: tuple(MODALITIES[orders[order].index(k)] for k in range(_COUNT))
        for case, order, found in zip(cohort, best, clear, strict=True)
        if found
    }


def _class_means(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    if np.count_nonzero(where) < _FEWEST_VOXELS:
        return np.full(_COUNT, np.nan)
    return np.asarray(scores[:, where].mean(axis=1))


def _tails(healthy: np.ndarray) -> np.ndarray:
    """How much farther the upper tail of each difference reaches than the lower, -1 to 1."""
    tails = np.zeros((_COUNT, _COUNT))
    for one, other in combinations(range(_COUNT), 2):
        low, middle, high = np.quantile(healthy[one] - healthy[other], [_TAIL, 0.5, 1 - _TAIL])
        tails[one, other] = (high + low - 2 * middle) / max(high - low, 1e-6)
    return tails - tails.T


def _costs(part: np.ndarray, orders: Sequence[tuple[int, ...]], *, pairs: bool) -> np.ndarray:
    """Mean squared distance from the median, shape ``(orders, cases)``."""
    center = _median(part)
    # The median absolute deviation, scaled to a standard deviation of normal values, which a few
    # exchanged cases do not widen.
    spread = np.maximum(1.4826 * _median(np.abs(part - center)), _SMALLEST_SPREAD)
    costs = []
    for order in orders:
        ordered = part[:, order][:, :, order] if pairs else part[:, order]
        distance = np.minimum(np.square((ordered - center) / spread), _FARTHEST)
        known = np.isfinite(distance)
        total = np.where(known, distance, 0).sum(axis=(1, 2))
        costs.append(total / np.maximum(known.sum(axis=(1, 2)), 1))
    return np.stack(costs)


def _median(values: np.ndarray) -> np.ndarray:
    """Over the cases that have a number; 0 where none has."""
    known = np.ma.masked_invalid(values)
    return np.asarray(np.ma.median(known, axis=0).filled(0))
