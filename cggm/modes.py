"""Modules in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
