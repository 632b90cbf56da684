"""The segmentation loss of CGGM: soft Dice plus weighted cross-entropy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SoftDiceCELoss(nn.Module):
    r"""Soft Dice over all foreground classes plus weighted cross-entropy (Guo et al., 2024).

    .. math::
        L = 1 - \frac{2 \sum p t}{\sum p + \sum t + s} + \lambda_1 \mathrm{CE}

    The sums run over the foreground classes, all pixels and the whole batch at once, so that large
    regions outweigh small ones; it is not the mean of per-class Dice scores that BraTS reports.
    Twice differentiable. Computed in float32 under autocast, without operations that lack a
    deterministic CUDA kernel.

    Args:
        class_weights: Cross-entropy weight of each class, the background first.
        ce_weight: :math:`\lambda_1`, the weight of the cross-entropy.
        smooth: :math:`s`, keeps the Dice term defined without foreground.
    """

    class_weights: Tensor

    def __init__(
        self,
        class_weights: Sequence[float] = (0.2, 0.3, 0.25, 0.25),
        ce_weight: float = 1.0,
        smooth: float = 0.01,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)
        self.ce_weight = ce_weight
        self.smooth = smooth

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
        dice = self._dice(log_probability[:, 1:].exp().sum(), log_target.exp(), target > 0)
        # nll_loss on images has no deterministic CUDA kernel, hence the weighted mean by hand.
        weight = self.class_weights.to(dtype)[target]
        cross_entropy = -(weight * log_target).sum() / weight.sum()
        return 1 - dice + self.ce_weight * cross_entropy

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
