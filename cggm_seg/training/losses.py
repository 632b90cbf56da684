"""The segmentation loss of CGGM: soft Dice plus weighted cross-entropy."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from cggm_seg.evaluation import CLASSES, REGIONS
from cggm_seg.training.config import DiceTerm


class SoftDiceCELoss(nn.Module):
    r"""Soft Dice plus weighted cross-entropy (Guo et al., 2024, appendix).

    .. math::
        L = 1 - \frac{1}{|K|} \sum_{k \in K} \frac{2 \sum p_k t_k}{\sum p_k + \sum t_k + s}
            + \lambda_1 \mathrm{CE}

    The inner sums run over all pixels of the whole batch. What the set K holds is a choice:

    - ``"foreground"``, the paper's: one term whose sums run over the foreground classes as well.
      Large regions outweigh small ones, which may stay unlearnt; it is not the mean of the Dice of
      regions that BraTS reports.
    - ``"regions"``: WT, TC and ET, where :math:`p_k` sums the probabilities of a region's classes.
      All weigh alike, however small. Our extension; needs the four classes of BraTS.
    - ``"classes"``: each foreground class by itself. Our extension, for any number of classes.

    Of the last two, a region that no pixel of the batch belongs to is left out of K: its Dice is 0
    whatever is predicted, so that it could teach nothing. The cross-entropy alone acts against
    false pixels of it, and where K is empty.

    Twice differentiable. Computed in float32 under autocast, without operations that lack a
    deterministic CUDA kernel.

    Args:
        class_weights: Cross-entropy weight of each class, the background first.
        ce_weight: :math:`\lambda_1`, the weight of the cross-entropy.
        smooth: :math:`s` in pixels, keeps the Dice term defined without foreground.
        dice: What the Dice term is the mean of: ``"regions"``, ``"classes"`` or ``"foreground"``.

    Raises:
        ValueError: If ``dice`` is none of them, or is ``"regions"`` for other than four classes.
    """

    class_weights: Tensor

    def __init__(
        self,
        class_weights: Sequence[float] = (0.2, 0.3, 0.25, 0.25),
        ce_weight: float = 1.0,
        smooth: float = 0.01,
        dice: DiceTerm = "foreground",
    ) -> None:
        super().__init__()
        if dice not in get_args(DiceTerm):
            raise ValueError(f"Expected `dice` to be one of {get_args(DiceTerm)}, got {dice!r}.")
        if dice == "regions" and len(class_weights) != CLASSES:
            raise ValueError(
                f"Expected {CLASSES} classes for the Dice of WT, TC and ET, but got "
                f"{len(class_weights)} class weights. Choose dice='classes'."
            )
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)
        self.ce_weight = ce_weight
        self.smooth = smooth
        self.dice = dice

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            prediction: Logits, shape ``(B, C, *S)`` with any number of spatial axes.
            target: Class indices, int64, shape ``(B, *S)`` or ``(B, 1, *S)``.

        Raises:
            ValueError: If the number of classes or the shapes do not fit.
        """
        if target.ndim != prediction.ndim:
            target = target.unsqueeze(1)
        self._check(prediction, target)
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        log_probability = torch.log_softmax(prediction, dim=1, dtype=dtype)
        log_target = log_probability.gather(1, target)  # (B, 1, *S)
        if self.dice == "foreground":
            predicted = log_probability[:, 1:].exp().sum()
            dice_loss = 1 - self._dice(predicted, log_target.exp(), target > 0)
        else:
            dice_loss = self._mean_dice_loss(log_probability.exp(), target[:, 0])
        # nll_loss on images has no deterministic CUDA kernel, hence the weighted mean by hand.
        weight = self.class_weights.to(dtype)[target]
        cross_entropy = -(weight * log_target).sum() / weight.sum()
        return dice_loss + self.ce_weight * cross_entropy

    def _mean_dice_loss(self, probability: Tensor, target: Tensor) -> Tensor:
        """Mean of 1 - Dice over the regions or classes that are in the batch, 0 where none is."""
        groups = REGIONS.values() if self.dice == "regions" else _each_class(probability.shape[1])
        by_class = probability.unbind(1)  # indexing with a list has no deterministic CUDA backward
        losses, sizes = [], []
        for classes in groups:
            p = torch.stack([by_class[c] for c in classes]).sum(0)
            truth = torch.stack([target == c for c in classes]).any(0)
            losses.append(1 - self._dice(p.sum(), p, truth))
            sizes.append(truth.sum())
        present = (torch.stack(sizes) > 0).to(probability.dtype)
        return (torch.stack(losses) * present).sum() / present.sum().clamp(min=1)

    def _dice(self, predicted: Tensor, probability: Tensor, foreground: Tensor) -> Tensor:
        overlap = (probability * foreground).sum()
        return 2 * overlap / (predicted + foreground.sum() + self.smooth)

    def _check(self, prediction: Tensor, target: Tensor) -> None:
        classes = len(self.class_weights)
        if prediction.shape[1] != classes:
            raise ValueError(
                f"Expected {classes} classes as in `class_weights`, but got logits of shape "
                f"{tuple(prediction.shape)}. Give one weight per class."
            )
        if target.shape != (len(prediction), 1, *prediction.shape[2:]):
            raise ValueError(
                f"Expected one class index per pixel of logits of shape {tuple(prediction.shape)}, "
                f"but got a target of shape {tuple(target.shape)}."
            )


def _each_class(classes: int) -> list[tuple[int]]:
    return [(k,) for k in range(1, classes)]
