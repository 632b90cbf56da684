"""Nested containers of tensors, as encoders return them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets back the mode that it had."""
    with frozen(network), torch.inference_mode():
        yield


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; every module gets back the mode that it had."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:  # module by module: some may have been frozen in evaluation mode
        for module in training:
            module.training = True


Features: TypeAlias = Any
"""A tensor, or tuples, named tuples, lists and dicts of tensors, nested at will."""


def map_tensors(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    """Apply a function to every tensor of a nested container, leaving other leaves alone."""
    if isinstance(features, Tensor):
        return function(features)
    if isinstance(features, Mapping):
        return {key: map_tensors(function, value) for key, value in features.items()}
    if isinstance(features, tuple) and hasattr(features, "_fields"):
        return type(features)(*(map_tensors(function, value) for value in features))
    if isinstance(features, list | tuple):
        return type(features)(map_tensors(function, value) for value in features)
    return features


def plain(value: Any) -> Any:  # noqa: ANN401
    """A tensor without its subclass (MONAI's ``MetaTensor`` slows arithmetic); others unchanged."""
    if isinstance(value, Tensor) and type(value) not in (Tensor, torch.nn.Parameter):
        return value.as_subclass(Tensor)
    return value


def absent(features: Features) -> Features:
    """Features of a modality that is not there: zeros, and no real step where masks are bool."""
    return map_tensors(torch.zeros_like, features)


def keep_samples(features: Features, kept: Tensor) -> Features:
    """Features in which some samples are absent.

    Args:
        features: Tensors whose first axis is the batch's.
        kept: Bool, shape ``(B,)``.
    """

    def keep(tensor: Tensor) -> Tensor:
        mask = kept.reshape(-1, *[1] * (tensor.ndim - 1))
        return torch.where(mask, tensor, torch.zeros_like(tensor))

    return map_tensors(keep, features)


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets of modalities by size without the empty one, so that all of them come last.

    Args:
        names: The modalities; subsets keep their order.

    Example:
        >>> subsets_of(["a", "v"])
        [('a',), ('v',), ('a', 'v')]
    """
    sizes = range(1, len(names) + 1)
    return [subset for size in sizes for subset in combinations(names, size)]
