"""Lesion-wise Dice and 95 % Hausdorff distance, as BraTS 2023 ranks by."""

import numpy as np
from scipy import ndimage

from cggm_seg.evaluation.scores import Row, Spacing, dice_and_hd95, score_regions

FALSE_HD95 = 374.0
"""HD95 in mm of a lesion that is missed, and of one that is not there."""

SMALLEST = 50.0
"""Lesions of the reference up to this volume, in mm^3, are not scored."""

_GROWTH = 3  # voxels by which two parts of one lesion reach for each other
_GROWING = ndimage.generate_binary_structure(3, 2)  # 18 neighbors
_TOUCHING = ndimage.generate_binary_structure(3, 3)  # 26 neighbors


def lesion_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> Row:
    r"""Lesion-wise Dice and HD95 of whole tumor, tumor core and enhancing tumor.

    For each region, a lesion is what is connected once the reference is dilated by three voxels;
    its own voxels stay as they are. The connected components of the prediction that reach into the
    dilated lesion are, taken together, its match :math:`P_i`; with the lesions :math:`R_i`, L of
    them above :data:`SMALLEST`, and F components that match no lesion,

    .. math:: \frac{\sum_{i=1}^{L} \mathrm{Dice}(P_i, R_i)}{L + F} \qquad
              \frac{\sum_{i=1}^{L} \mathrm{HD95}(P_i, R_i) + 374 F}{L + F}

    where a lesion without a match has Dice 0 and HD95 374 mm. Where L and F are 0, Dice is 1 and
    HD95 is 0. The rules are those of adult glioma; components are 26-connected. The organizers'
    HD95 weighs points by the area of the surface, ours by their number, as
    :func:`cggm_seg.evaluation.scores.case_metrics` does. A single false voxel counts as much as a
    lesion: for the agreement of whole volumes use that function.

    Args:
        prediction: Classes 0 background, 1 NCR, 2 ED, 3 ET, shape ``(H, W, Z)``.
        reference: Likewise.
        spacing: Size of a voxel in mm.

    Returns:
        The keys of :data:`cggm_seg.evaluation.scores.METRICS`.

    Raises:
        ValueError: If the shapes differ.
    """
    return score_regions(_mean_scores, prediction, reference, spacing, margin=_GROWTH)


def _mean_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: Spacing
) -> tuple[float, float]:
    components, found = ndimage.label(prediction, _TOUCHING)
    grown, wanted = ndimage.label(ndimage.binary_dilation(reference, _GROWING, _GROWTH), _TOUCHING)
    scores: list[tuple[float, float]] = []
    matched: set[int] = set()
    for number in range(1, wanted + 1):
        extent = grown == number
        lesion, match = extent & reference, np.unique(components[extent & prediction])
        matched.update(match.tolist())
        if np.count_nonzero(lesion) * np.prod(spacing) > SMALLEST:
            scores.append(_lesion_scores(np.isin(components, match), lesion, spacing))
    scores += [(0.0, FALSE_HD95)] * (found - len(matched))
    if not scores:
        return 1.0, 0.0
    dice, hd95 = np.mean(scores, axis=0)
    return float(dice), float(hd95)


def _lesion_scores(
    prediction: np.ndarray, lesion: np.ndarray, spacing: Spacing
) -> tuple[float, float]:
    return dice_and_hd95(prediction, lesion, spacing) if prediction.any() else (0.0, FALSE_HD95)
