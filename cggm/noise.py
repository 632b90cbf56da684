"""Noise on gradients that is the same on all ranks."""

import torch
from torch import Tensor, nn

from cggm.distributed import broadcast_from_first, world_size


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
