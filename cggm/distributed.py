"""Sums over the ranks of torch.distributed; every function is the identity for one process."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that writes files."""
    return world_size() == 1 or dist.get_rank() == 0


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over all ranks in one collective call.

    Args:
        tensors: Detached tensors of one device, of equal shapes on all ranks.

    Returns:
        New tensors of the same shapes and types; the tensors themselves for one process.
    """
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [p.view_as(t).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average each tensor over all ranks, see :func:`sum_over_ranks`."""
    ranks = world_size()
    return [t / ranks if ranks > 1 else t for t in sum_over_ranks(tensors)]


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor by the first rank's."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
