"""Tumor regions that BraTS scores, one within the other, and their Dice counts in a step."""

import numpy as np
import torch
from torch import Tensor

from cggm.runs import Metric, register_metrics

REGIONS: dict[str, tuple[int, ...]] = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}
"""Region to class indices (1 NCR, 2 ED, 3 ET) of each tumor region."""

REGION_NAMES = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}
"""Names of the regions in the order of tables and pictures, the largest region first."""

CLASSES = 4
"""Background and the three tumor classes."""

CLASS_NAMES = ("background", "necrotic tumor core", "peritumoral edema", "enhancing tumor")
"""What the classes 0 to 3 are called."""

register_metrics(
    Metric("dice_mean", "mean Dice", "higher"),
    *(Metric(f"dice_{region}", f"Dice {region}", "higher") for region in REGIONS),
    *(Metric(f"hd95_{region}", f"HD95 {region}", "lower", 2, "mm") for region in REGIONS),
)


def region_mask(labels: np.ndarray, region: str) -> np.ndarray:
    """Voxels of a region, bool, in a map of class indices of any shape.

    Raises:
        KeyError: If the region is not one of :data:`REGIONS`.
    """
    return np.isin(labels, REGIONS[region])


def region_dice_counts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of the Dice of ET, TC and WT over the whole batch.

    The Dice is their ratio, 1 where both are 0. Counts add up over micro-batches and ranks, ratios
    do not. Nothing here waits for the device. Counts above 2^24 voxels are rounded to float32.

    Args:
        prediction: Logits of the four classes, shape ``(B, 4, H, W)`` or ``(B, 4, H, W, Z)``; the
            largest decides, the first of equal ones.
        target: Class indices, any integer type, shape ``(B, H, W)`` or ``(B, H, W, Z)``.

    Returns:
        Twice the true positives, and the voxels of prediction plus target, shape ``(3,)`` each,
        float32, in the order of :data:`REGIONS`.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if prediction.shape[1] != CLASSES or prediction[:, 0].shape != target.shape:
        raise ValueError(
            f"Expected logits (B, {CLASSES}, ...) and classes (B, ...), "
            f"but got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    found, wanted = _regions_of_logits(prediction.detach()), _regions_of_classes(target)
    both = [torch.count_nonzero(p & t) for p, t in zip(found, wanted, strict=True)]
    either = [p.count_nonzero() + t.count_nonzero() for p, t in zip(found, wanted, strict=True)]
    return 2 * torch.stack(both).float(), torch.stack(either).float()


def _regions_of_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Comparisons in place of argmax over the channels, which takes 20 times longer on a processor.
    background, ncr, ed, et = logits.unbind(1)
    not_first = ncr > background
    last_two = torch.maximum(ed, et) > torch.maximum(background, ncr)
    enhancing = last_two & (et > ed)
    return enhancing, enhancing | (not_first & ~last_two), last_two | not_first


def _regions_of_classes(classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    enhancing = classes == 3
    return enhancing, enhancing | (classes == 1), classes > 0
