"""Class prototypes: one vector per sample, their means, and the verdict of the nearest."""

import torch
from torch import Tensor

from cggm.tensors import Features, tensors_in


def sample_vectors(features: Features) -> Tensor:
    """One vector per sample from what an encoder returns.

    Vectors ``(B, D)`` stay as they are. Steps ``(B, T, D)`` are averaged, over the real ones where
    a boolean mask ``(B, T)`` follows them in their container. Maps ``(B, D, *S)`` of two or three
    spatial axes are averaged over space. Several tensors of floats are put side by side.

    Args:
        features: Output of an encoder; other leaves than tensors of floats and masks are ignored.

    Returns:
        Shape ``(B, D)``, float32.

    Raises:
        ValueError: If there is no tensor of floats with a batch axis and one more.
    """
    leaves = list(tensors_in(features))
    values = [(i, leaf) for i, leaf in enumerate(leaves) if leaf.is_floating_point()]
    if not values or any(leaf.ndim < 2 for _, leaf in values):
        raise ValueError(
            "Expected an encoder to return tensors of floats of shape (B, D), (B, T, D) or "
            f"(B, D, *S), but got shapes {[tuple(leaf.shape) for _, leaf in values]}."
        )
    return torch.cat([_pooled(leaf.float(), leaves[i:]) for i, leaf in values], 1)


def class_means(sums: Tensor) -> Tensor:
    """Means from sums whose last column counts the samples.

    Args:
        sums: Shape ``(C, D + 1)``.

    Returns:
        Same shape; the last column is 1, or 0 for a class without a sample, whose row is 0.
    """
    return sums / sums[:, -1:].clamp_min(1)


def log_probabilities(vectors: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """Log-softmax of negative Euclidean distances over the known classes.

    Args:
        vectors: Shape ``(B, D)``.
        means: Prototypes, shape ``(C, D)``.
        known: Bool, shape ``(C,)``; other classes get a probability of 0, unless none is known.

    Returns:
        Shape ``(B, C)``, finite; its gradient at distance 0 is 0.
    """
    # by differences, because products of large vectors lose small distances
    distances = torch.cdist(vectors, means, compute_mode="donot_use_mm_for_euclid_dist")
    lowest = torch.finfo(distances.dtype).min / 2
    return (-distances).masked_fill(~known, lowest).log_softmax(1)


def _pooled(values: Tensor, following: list[Tensor]) -> Tensor:
    if values.ndim != 3:
        return values.flatten(2).mean(2) if values.ndim > 3 else values
    masks = [m for m in following if m.dtype == torch.bool and m.shape == values.shape[:2]]
    if not masks:
        return values.mean(1)
    real = masks[0][..., None]
    return values.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)
