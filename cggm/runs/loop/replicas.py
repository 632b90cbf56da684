"""Replicas of one training: they draw apart, and end it where they no longer agree."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from cggm.balancer import Balancer
from cggm.distributed import rank, world_size
from cggm.runs.launch import check_ranks_agree


def replicated(network: nn.Module, *, sync_batchnorm: bool = False) -> nn.Module:
    """The network as one replica of several, whose gradients are averaged; itself for one process.

    Only the training's forward pass needs it; all else goes on with the network itself.

    Args:
        network: The network, on its device.
        sync_batchnorm: Whether BatchNorm takes its statistics over all ranks. PyTorch can on GPUs
            alone; on processors each rank uses its own part of the batch.
    """
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    if sync_batchnorm and device.type == "cuda":
        # in place, with the same parameters
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None)


class Replicas:
    """Looks after the ranks of one training; does nothing for a process that runs alone.

    Random numbers, such as those of dropout, come from seed, rank and step, so that they differ
    between ranks and a resumed run repeats them with no state saved. At the end of each epoch the
    coefficients that the method used since the last one, its state and the weights must be the same
    on all ranks, bit for bit; statistics of BatchNorm may differ.

    Args:
        network: The network.
        balancer: The method, bound; ``None`` for a training without.
        seed: Of the run.
    """

    def __init__(self, network: nn.Module, balancer: Balancer | None, seed: int) -> None:
        self._network, self._balancer, self._seed = network, balancer, seed
        modalities = 0 if balancer is None else len(balancer.binding.names)
        self._used = torch.zeros(2, modalities, device=next(network.parameters()).device)

    def attach(self, engine: Engine) -> None:
        """Attach to a training engine, before what saves at the end of an epoch."""
        if world_size() > 1:
            engine.add_event_handler(Events.ITERATION_STARTED, self._draw)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _draw(self, engine: Engine) -> None:
        words = np.random.SeedSequence([self._seed, rank(), engine.state.iteration])
        # 32 bits, because PyTorch's generator of the processor looks at no more
        torch.manual_seed(int(words.generate_state(1)[0]))

    def _add(self, engine: Engine) -> None:
        """Sum on the device what acted, so that one differing step is enough."""
        if self._balancer is None:
            return
        factors = self._balancer.binding.factors
        for row, scales in zip(self._used, (factors.gradient, factors.update), strict=True):
            if scales is not None:
                row += scales.detach()

    def _check(self, engine: Engine) -> None:
        values = {
            "coefficients": _digest([self._used]),
            "state of the method": _digest(
                [] if self._balancer is None else _state(self._balancer)
            ),
            "weights": _digest(self._network.parameters()),
        }
        self._used.zero_()
        check_ranks_agree(
            values,
            f" after epoch {engine.state.epoch}",
            "Continue from the last checkpoint with --resume; if it happens again, compare the "
            "machines and their software.",
        )


def _state(balancer: Balancer) -> list[Tensor]:
    """Parameters and buffers, without the statistics that each rank takes of its own samples."""
    own = [m for m in balancer.modules() if not isinstance(m, _NormBase)]
    return [*balancer.parameters(), *(b for m in own for b in m.buffers(recurse=False))]


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
