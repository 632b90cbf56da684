"""Late fusion: one head per modality, part of the network, whose predictions are combined."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from cggm.errors import MethodRefusal
from cggm.tensors import Features

FusionRule = Literal["features", "average", "sum", "energy"]
"""Rule by which a network fuses features or, late, the predictions of a head per modality."""


def late_rule(fusion: FusionRule, regression: bool) -> str:
    """The rule of :class:`LateFusion` that a network means.

    Args:
        fusion: ``"average"`` averages probabilities, or values for regression; others are rules.
        regression: Whether predictions are values.

    Raises:
        MethodRefusal: If values have no energy.
    """
    if fusion == "energy" and regression:
        raise MethodRefusal(
            "Expected class logits to fuse by energy, but the task is a regression.",
            "Fuse by average or sum.",
        )
    if fusion == "average":
        return "mean" if regression else "probabilities"
    return fusion


def _mean(predictions: Tensor) -> Tensor:
    return predictions.mean(0)


def _sum(predictions: Tensor) -> Tensor:
    return predictions.sum(0)


def _probabilities(predictions: Tensor) -> Tensor:
    return predictions.log_softmax(2).logsumexp(0) - torch.tensor(len(predictions)).log()


def _energy(predictions: Tensor) -> Tensor:
    return (energy(predictions).detach() * predictions).sum(0)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "sum": _sum,
    "probabilities": _probabilities,
    "energy": _energy,
}


def energy(logits: Tensor) -> Tensor:
    r"""Confidence of logits, a tenth of their negated free energy (Zhang et al., ICML 2023).

    .. math:: \omega = \tfrac{1}{10} \log \sum_c \exp z_c

    Args:
        logits: Shape ``(M, B, C, *S)``.

    Returns:
        Shape ``(M, B, 1, *S)``; for segmentation one confidence per voxel.
    """
    return logits.logsumexp(2, keepdim=True) / 10


class LateFusion(nn.ModuleDict):
    """Last layers of a late-fusion network: one head per modality.

    A network has it as ``output_layer`` and returns ``output_layer.combine`` of what it predicts
    from what the encoders return. Unlike the heads that judge encoders during training, these are
    part of the network and needed at inference. Methods that train modalities apart
    (``UnimodalEnsemble``, QMF, ReconBoost) need such a network.

    ================= =======================================================================
    rule              prediction
    ================= =======================================================================
    ``mean``          mean of the heads' predictions
    ``sum``           their sum, as in boosting
    ``probabilities`` logarithm of the mean of their softmax; classes alone
    ``energy``        logits weighted by :func:`energy`, detached (QMF); classes alone
    ================= =======================================================================

    Args:
        heads: Modality name to head, same names and order as the encoders; each takes what its
            encoder returns.
        rule: How predictions are combined.

    Raises:
        ValueError: If ``rule`` is unknown.
    """

    def __init__(self, heads: Mapping[str, nn.Module], rule: str = "mean") -> None:
        super().__init__(dict(heads))
        if rule not in RULES:
            raise ValueError(f"Expected `rule` to be one of {list(RULES)}, but got {rule!r}.")
        self.rule = rule

    def forward(self, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Prediction of each modality, from what its encoder returns."""
        return {name: head(features[name]) for name, head in self.items()}

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction.

        Args:
            predictions: Modality name to prediction, all of one shape.

        Raises:
            ValueError: If the rule needs logits and gets values of shape ``(B,)`` or ``(B, 1)``.
        """
        stacked = torch.stack(list(predictions.values()))
        values = stacked.ndim < 3 or stacked.shape[2] < 2
        if self.rule in ("probabilities", "energy") and values:
            raise ValueError(
                f"Expected logits of two and more classes for the rule {self.rule!r}, but got "
                f"predictions of shape {tuple(stacked.shape[1:])}. "
                "Use 'mean' or 'sum' for regression."
            )
        return RULES[self.rule](stacked)
