"""Shapley values of modalities, from predictions without the others."""

from collections.abc import Mapping, Sequence
from math import factorial

import torch
from torch import Tensor

from cggm.tensors import subsets_of


def shapley_weights(names: Sequence[str]) -> Tensor:
    r"""Weight of each subset's prediction in each modality's Shapley value.

    .. math:: \varphi_m = \sum_{S \not\ni m} \frac{|S|! (M - |S| - 1)!}{M!}
              \left( f(S \cup m) - f(S) \right), \quad f(\emptyset) = 0

    Args:
        names: Modalities.

    Returns:
        Shape ``(M, 2**M - 1)``, subsets in the order of :func:`cggm.tensors.subsets_of`.

    Example:
        >>> shapley_weights(["a", "v"])
        tensor([[ 0.5000, -0.5000,  0.5000],
                [-0.5000,  0.5000,  0.5000]])
    """
    count, subsets = len(names), subsets_of(names)

    def weight(others: int) -> float:
        return factorial(others) * factorial(count - others - 1) / factorial(count)

    rows = [[weight(len(s) - 1) if n in s else -weight(len(s)) for s in subsets] for n in names]
    return torch.tensor(rows, dtype=torch.float32)


def combined(weights: Tensor, predictions: Mapping[tuple[str, ...], Tensor]) -> Tensor:
    """Weighted sum of the subsets' predictions.

    Args:
        weights: One row of :func:`shapley_weights`, or a combination of rows.
        predictions: By subset, in the order of :func:`cggm.tensors.subsets_of`.
    """
    # elementwise, because autocast would run a matrix product in half precision
    parts = zip(weights, predictions.values(), strict=True)
    return torch.stack([weight * prediction for weight, prediction in parts]).sum(0)
