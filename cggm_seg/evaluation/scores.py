"""Dice and 95 % Hausdorff distance of one case, scored as in BraTS 2021."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from scipy import ndimage

from cggm_seg.evaluation.regions import REGION_NAMES, REGIONS, region_mask

WORST_HD95 = 373.1287
"""HD95 in mm where one of two regions is empty, as in BraTS 2021.

It is the diagonal of the volume, sqrt(240^2 + 240^2 + 155^2), the largest distance there can be.
"""

METRICS = tuple(f"{metric}_{region}" for metric in ("dice", "hd95") for region in REGION_NAMES)

Row = dict[str, float]
Spacing = tuple[float, float, float]
MaskScore = Callable[[np.ndarray, np.ndarray, Spacing], tuple[float, float]]


def case_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> Row:
    """Dice and HD95 of whole tumor, tumor core and enhancing tumor.

    HD95 is the larger of the two directed 95th percentiles of surface distances. A region that is
    empty in both volumes scores Dice 1 and HD95 0; one that is empty in only one of them, Dice 0
    and :data:`WORST_HD95`: a single false voxel costs the whole region.

    Args:
        prediction: Classes 0 background, 1 NCR, 2 ED, 3 ET, shape ``(H, W, Z)``.
        reference: Likewise.
        spacing: Size of a voxel in mm.

    Returns:
        The keys of :data:`METRICS`.

    Raises:
        ValueError: If the shapes differ.
    """
    return score_regions(_whole_scores, prediction, reference, spacing)


def score_regions(
    score: MaskScore,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Spacing,
    *,
    margin: int = 0,
) -> Row:
    """Scores of each region, computed within the box of the tumors alone.

    Args:
        score: Masks of prediction and reference, and the spacing, to Dice and HD95 in mm.
        prediction: Classes, shape ``(H, W, Z)``.
        reference: Likewise.
        spacing: Size of a voxel in mm.
        margin: Voxels around the tumors that the score looks at.

    Returns:
        The keys of :data:`METRICS`.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"Expected two volumes of one shape, but got {prediction.shape} and {reference.shape}."
        )
    box = _box((prediction > 0) | (reference > 0), margin)
    found, wanted = prediction[box], reference[box]
    scores = {
        region: score(region_mask(found, region), region_mask(wanted, region), spacing)
        for region in REGIONS
    }
    pairs = (metric.split("_") for metric in METRICS)
    return {f"{kind}_{region}": scores[region][kind == "hd95"] for kind, region in pairs}


def dice_and_hd95(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing
) -> tuple[float, float]:
    """Dice and HD95 in mm of two masks that both hold a voxel.

    HD95 is the larger of the two directed 95th percentiles of surface distances.

    Args:
        prediction: Bool, shape ``(H, W, Z)``.
        reference: Likewise.
        spacing: Size of a voxel in mm.
    """
    voxels = np.count_nonzero(prediction) + np.count_nonzero(reference)
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself.
        warnings.filterwarnings("ignore", message="monai.metrics.utils get_mask_edges")
        distance = compute_hausdorff_distance(
            torch.from_numpy(prediction)[None, None],
            torch.from_numpy(reference)[None, None],
            include_background=True,
            percentile=95,
            spacing=[float(size) for size in spacing],  # of one type, or MONAI refuses them
        )
    return 2 * np.count_nonzero(prediction & reference) / voxels, float(distance)


def _whole_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing
) -> tuple[float, float]:
    found, wanted = prediction.any(), reference.any()
    if found and wanted:
        return dice_and_hd95(prediction, reference, spacing)
    return (0.0, WORST_HD95) if found or wanted else (1.0, 0.0)


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Box of the voxels that are set, widened on all sides; empty where none is."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return (slice(0),) * mask.ndim
    return tuple(slice(max(span.start - margin, 0), span.stop + margin) for span in found[0])
