"""Sums and shares over the ranks of torch.distributed; alone, a process keeps what it has."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks, 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among the ranks, 0 outside torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: every ``world_size()``-th item, so shares differ by one item at most."""
    return items[rank() :: world_size()]


def gather_objects(value: T) -> list[T]:
    """What each rank gives, in the order of ranks; every rank calls it.

    Args:
        value: It is pickled, so that it comes from the ranks of this run alone.
    """
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def gather_shards(share: Sequence[T]) -> list[T]:
    """What all ranks made of their :func:`shard`, in the order of the items; every rank calls it.

    Args:
        share: One result per item of this rank's share; results are pickled, so that they come
            from the ranks of this run alone.
    """
    shares, ranks = gather_objects(share), world_size()
    return [shares[k % ranks][k // ranks] for k in range(sum(map(len, shares)))]


def largest_of_ranks(number: int) -> int:
    """The largest of the numbers that the ranks give, without waiting for a GPU."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX, _host_group())
    return int(largest)


def wait_for_ranks() -> None:
    """Return once all ranks have come here, without waiting for a GPU."""
    largest_of_ranks(0)


@cache
def _host_group() -> Any:  # noqa: ANN401
    """The ranks by their processors, beside NCCL's GPUs; ``None`` where they talk so anyway."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None


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
