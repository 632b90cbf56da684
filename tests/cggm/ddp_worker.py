"""What one rank of two does: trains on its half of each batch."""

import copy

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from cggm import BalanceHandler
from cggm.methods import GuidedHeads
from tests.cggm.networks import accuracy, late_batch, make_cggm, make_late
from tests.ranks import WORLD

STEPS, SIZE, DRAWS = 50, 16, 300


def halves(batch, rank, world):
    """This rank's share of a batch."""
    return [part.chunk(world)[rank] for part in batch]


def train(rank: int, world: int) -> dict[str, object]:
    """Train CGGM for some steps on this rank's share of each batch."""
    network, heads = make_late()
    cggm = make_cggm(heads, lam=0.5, gate=None)
    wrapped = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    terms = []

    def update(engine, batch):
        inputs, target = halves(batch, rank, world)
        optimizer.zero_grad()
        cggm(wrapped(inputs), target).backward()
        optimizer.step()
        terms.append(cggm.readings["term"].clone())

    cggm.bind(wrapped)
    engine = Engine(update)
    BalanceHandler(cggm).attach(engine)
    engine.run([late_batch(SIZE, seed=seed) for seed in range(STEPS)], max_epochs=1)
    return {
        "terms": torch.stack(terms),
        "network": network.state_dict(),
        "cggm": {k: v for k, v in cggm.state_dict().items() if isinstance(v, torch.Tensor)},
    }


def guided_gradients(rank: int, world: int, seeds: range) -> torch.Tensor:
    """The network's gradient in the first step of guided heads, one row for each seed of draws."""
    network, heads = make_late()
    wrapped = DistributedDataParallel(network) if world > 1 else network
    inputs, target = halves(late_batch(SIZE, seed=0), rank, world)
    rows = []
    for seed in seeds:
        own = copy.deepcopy(heads)
        method = GuidedHeads(own, F.cross_entropy, accuracy, gate=None, switch=None, seed=seed)
        method.bind(wrapped)
        network.zero_grad()
        method(wrapped(inputs), target).backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        method.unbind()
    return torch.stack(rows)


def found_of_rank(rank: int) -> dict[str, object]:
    """What this rank ends with, and its gradients under guided heads."""
    assert idist.get_world_size() == WORLD
    return train(rank, WORLD) | {"guided": guided_gradients(rank, WORLD, range(DRAWS))}
