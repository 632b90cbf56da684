"""One rank of the two-process tests: trains on its half and saves what it ends with."""

import copy
import sys
from datetime import timedelta
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from cggm import BalanceHandler
from cggm.methods import GuidedHeads
from tests.cggm.networks import accuracy, late_batch, make_cggm, make_late

SIZE, DRAWS = 16, 300


def halves(batch, rank, world):
    """This rank's share of a batch."""
    return [part.chunk(world)[rank] for part in batch]


def train(rank: int, world: int, steps: int) -> dict[str, object]:
    """Train CGGM for some steps on this rank's share of each batch."""
    torch.set_num_threads(1)
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
    engine.run([late_batch(SIZE, seed=seed) for seed in range(steps)], max_epochs=1)
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


if __name__ == "__main__":
    store, rank, world, steps = sys.argv[1], *map(int, sys.argv[2:5])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    assert idist.get_world_size() == world
    found = train(rank, world, steps) | {"guided": guided_gradients(rank, world, range(DRAWS))}
    torch.save(found, Path(store) / f"rank{rank}.pt")
    dist.destroy_process_group()
