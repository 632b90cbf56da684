"""How confident each modality is inside a joint model: what OGM and its relatives compare."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cggm.distributed import broadcast_from_first, world_size
from cggm.scores import Score
from cggm.tensors import Features


def first_ranks_seed(seed: int, device: torch.device) -> int:
    """The first rank's seed; waits for the device where there are several ranks."""
    if world_size() == 1:
        return seed
    shared = torch.tensor(seed, device=device)
    broadcast_from_first([shared])
    return int(shared)


@torch.no_grad()
def add_noise(module: nn.Module, spread: Tensor, generator: torch.Generator) -> None:
    """Add Gaussian noise to the gradients of a module's weights, in place.

    Its standard deviation is relative to the gradient, so a loss scale does no harm.

    Args:
        module: Its parameters of two and more axes get noise, where they have a gradient.
        spread: Standard deviation in units of that of each gradient's entries, a scalar.
        generator: Draws the noise, on the gradients' device.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for gradient in (g for g in gradients if g.ndim >= 2 and g.numel() > 1):
        full = gradient.float()
        noise = torch.randn(full.shape, generator=generator, device=full.device)
        gradient.add_(noise * full.std() * spread)


def true_class_probability(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Summed probability of the true class and number of samples, a :data:`cggm.scores.Score`.

    Args:
        prediction: Logits, shape ``(B, C)``.
        target: Class indices, shape ``(B,)``; negative ones are ignored.

    Returns:
        Numerator and denominator, each of shape ``(1,)``.
    """
    known = target >= 0
    probability = prediction.float().softmax(1).gather(1, target.clamp_min(0).long()[:, None])[:, 0]
    return torch.where(known, probability, 0.0).sum()[None], known.sum()[None]


def is_classification(prediction: Tensor, target: Any) -> bool:  # noqa: ANN401
    """Whether the prediction is logits ``(B, C)`` and the target class indices ``(B,)``."""
    return (
        isinstance(target, Tensor)
        and not (target.is_floating_point() or target.dtype == torch.bool)
        and prediction.ndim == 2
        and target.shape == prediction.shape[:1]
    )


def confidence_score(score: Score | None, prediction: Tensor, target: Any) -> Score:  # noqa: ANN401
    """What judges a modality: the published probability for classes, else the score given.

    Args:
        score: For other tasks.
        prediction: The network's.
        target: What it is compared with.

    Raises:
        ValueError: If a score is needed and missing.
    """
    if is_classification(prediction, target):
        return true_class_probability
    if score is None:
        raise ValueError(
            "Expected logits (B, C) and class indices (B,), or a `score`, but got a prediction "
            f"of shape {tuple(prediction.shape)} and no score. Give one."
        )
    return score


def confidence_ratios(scores: Tensor) -> Tensor:
    r"""Each modality's score over the mean of the others'.

    .. math:: \rho_m = s_m / \mathrm{mean}_{k \neq m} s_k

    Computed from differences, so that it is exactly 1 at equal scores. If a score is negative, such
    as a negated error, exponentials of the scores are compared.

    Args:
        scores: Higher is better, shape ``(M,)``.

    Returns:
        Ratios, shape ``(M,)``; NaN where undefined: one modality, all scores zero, a NaN.

    Example:
        >>> confidence_ratios(torch.tensor([0.8, 0.4, 0.4]))
        tensor([2.0000, 0.6667, 0.6667])
    """
    scores = torch.where((scores < 0).any(), (scores - scores.max()).exp(), scores)
    others = scores.expand(len(scores), -1).clone().fill_diagonal_(0.0).sum(1)
    return 1 + (scores[:, None] - scores).sum(1) / others


def ogm_factors(ratios: Tensor, alpha: float, continuous: bool) -> Tensor:
    r"""Factors of OGM (Peng et al., CVPR 2022): only a modality that is ahead is slowed down.

    .. math:: k_m = 1 - \tanh(\alpha (\rho_m - [continuous])) \text{ if } \rho_m > 1 \text{ else } 1

    Args:
        ratios: See :func:`confidence_ratios`, shape ``(M,)``.
        alpha: Strength, not negative.
        continuous: Whether 1 is subtracted, so that nothing jumps at ratio 1 (our extension).

    Returns:
        Factors in [0, 1], shape ``(M,)``; 1 where a ratio is undefined.

    Example:
        >>> ogm_factors(torch.tensor([2.0, 0.5]), 0.5, continuous=False)
        tensor([0.2384, 1.0000])
    """
    # 1 - tanh(x) in a form that does not cancel
    factors = 2 * torch.sigmoid(-2 * alpha * (ratios - 1 if continuous else ratios))
    return torch.where((ratios > 1) & ~factors.isnan(), factors, 1.0)


def split_logits(
    features: Mapping[str, Features], layer_input: Tensor, layer: nn.Module
) -> list[Tensor]:
    r"""Share of each modality in a linear layer's output, :math:`W_m h_m + b / M`.

    Args:
        features: Output of each encoder, ``(B, D_m)``, in the order of concatenation.
        layer_input: Their concatenation, with or without dropout, ``(B, sum of D_m)``.
        layer: The linear layer.

    Returns:
        Detached logits of each modality, ``(B, C)``, in float32; they add up to the output.
    """
    assert isinstance(layer, nn.Linear)
    widths = [part.shape[-1] for part in features.values() if isinstance(part, Tensor)]
    bias = 0 if layer.bias is None else layer.bias.detach().float() / len(widths)
    weights = torch.split(layer.weight.detach().float(), widths, 1)
    with torch.autocast(layer_input.device.type, enabled=False):
        inputs = torch.split(layer_input.detach().float(), widths, 1)
        return [part @ weight.T + bias for part, weight in zip(inputs, weights, strict=True)]


def check_split(features: Mapping[str, Features], layer_input: Tensor, layer: nn.Module) -> None:
    """Hold that a linear layer takes the concatenated features; waits for the device.

    Raises:
        ValueError: If it does not.
    """
    parts = list(features.values())
    if isinstance(layer, nn.Linear) and all(isinstance(p, Tensor) and p.ndim == 2 for p in parts):
        joined = torch.cat(parts, 1)
        if joined.shape == layer_input.shape and torch.equal(joined.to(layer_input), layer_input):
            return
    raise ValueError(
        "Expected a linear `output_layer` on the concatenated outputs of the encoders, in their "
        f'order, as logits="split" needs, but got {type(layer).__name__} on an input of shape '
        f'{tuple(layer_input.shape)}. Use logits="heads".'
    )
