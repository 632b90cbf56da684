"""Late fusion: one head per modality, part of the network, whose predictions are combined."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cggm.errors import MethodRefusal
from cggm.tensors import Features

FusionRule = Literal["features", "average", "sum", "energy", "entropy"]
"""Rule by which a network fuses features or, late, the predictions of a head per modality."""


def late_rule(fusion: FusionRule, regression: bool) -> str:
    """The rule of :class:`LateFusion` that a network means.

    Args:
        fusion: ``"average"`` averages probabilities, or values for regression; others are rules.
        regression: Whether predictions are values.

    Raises:
        MethodRefusal: If values have neither energy nor entropy.
    """
    if fusion in ("energy", "entropy") and regression:
        raise MethodRefusal(
            f"Expected class logits to fuse by {fusion}, but the task is a regression.",
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


def _entropy(predictions: Tensor) -> Tensor:
    log_p = predictions.log_softmax(2)
    entropies = -(log_p.exp() * log_p).sum(2, keepdim=True)
    return ((-entropies).softmax(0) * predictions).sum(0)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "sum": _sum,
    "probabilities": _probabilities,
    "energy": _energy,
    "entropy": _entropy,
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
    r"""Last layers of a late-fusion network: one head per modality.

    A network has it as ``output_layer`` and returns ``output_layer.combine`` of what it predicts
    from what the encoders return. Unlike the heads that judge encoders during training, these are
    part of the network and needed at inference. Methods that train modalities apart
    (``UnimodalEnsemble``, QMF, ReconBoost, MLA) need such a network.

    ================= =======================================================================
    rule              prediction
    ================= =======================================================================
    ``mean``          mean of the heads' predictions
    ``sum``           their sum, as in boosting
    ``probabilities`` logarithm of the mean of their softmax; classes alone
    ``energy``        logits weighted by :func:`energy`, detached (QMF); classes alone
    ``entropy``       logits weighted by :math:`\exp(-H_m) / \sum_k \exp(-H_k)` with the entropy of
                      each sample's softmax, voxel by voxel (MLA); classes alone
    ================= =======================================================================

    Args:
        heads: Modality name to head, same names and order as the encoders; each takes what its
            encoder returns.
        rule: How predictions are combined.
        shared: Whether all heads end in the first one's ``output_layer``, whose parameters are then
            this module's own: ``shared_weight`` and ``shared_bias``.

    Attributes:
        rule: As given.
        shared: As given.
        shared_weight: Weight of the layer that all heads share, where they do.

    Raises:
        ValueError: If ``rule`` is unknown.
    """

    shared_weight: nn.Parameter

    def __init__(
        self, heads: Mapping[str, nn.Module], rule: str = "mean", *, shared: bool = False
    ) -> None:
        super().__init__(dict(heads))
        if rule not in RULES:
            raise ValueError(f"Expected `rule` to be one of {list(RULES)}, but got {rule!r}.")
        self.rule, self.shared = rule, shared
        if shared:
            layer: Any = next(iter(self.values())).output_layer
            for head in self.values():
                del head.output_layer
                # no submodule of a head, so that states have it once, under the same name whatever
                # the order of modalities
                object.__setattr__(head, "output_layer", layer)
            for name, parameter in layer.named_parameters():
                self.register_parameter(f"shared_{name}", parameter)

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
        if self.rule in ("probabilities", "energy", "entropy") and values:
            raise ValueError(
                f"Expected logits of two and more classes for the rule {self.rule!r}, but got "
                f"predictions of shape {tuple(stacked.shape[1:])}. "
                "Use 'mean' or 'sum' for regression."
            )
        return RULES[self.rule](stacked)
