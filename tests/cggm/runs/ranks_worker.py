"""One of two ranks: what it found is left as JSON, or a mistake ends it as it ends a command."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine
from torch import Tensor

from cggm import BalanceHandler
from cggm.distributed import (
    gather_shards,
    largest_of_ranks,
    rank,
    shard,
    wait_for_ranks,
    world_size,
)
from cggm.errors import UserError
from cggm.runs import launch as ranks
from cggm.runs.cli import run
from cggm.runs.launch import (
    check_ranks_agree,
    end_process,
    first_alone,
    joined,
    ranked,
    share_of_batch,
)
from cggm.runs.loop.replicas import Replicas, replicated
from tests.cggm.contract_runs import TASKS, build, make, train
from tests.cggm.networks import NAMES, late_batch, make_cggm, make_late


def refusal(function: Callable[[], object]) -> str:
    """What a function refuses; empty if it does not."""
    try:
        function()
    except UserError as error:
        return str(error)
    return ""


def trained(
    spoilt_at: int | None = None, moved_at: int | None = None, epochs: int = 3
) -> tuple[list[float], list[float]]:
    """Draws of epochs of two steps, and weights.

    In one step rank 1 may use another coefficient, or its method's state may move.
    """
    network, heads = make_late()
    cggm = make_cggm(heads, gate=None).bind(network)
    replica, draws = replicated(network), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def update(engine: Engine, batch: tuple[Tensor, Tensor]) -> None:
        draws.append(float(torch.rand(())))
        inputs, target = (part.chunk(world_size())[rank()] for part in batch)
        optimizer.zero_grad()
        loss = cggm(replica(inputs), target)
        if rank() == 1 and engine.state.iteration == spoilt_at:
            cggm.binding.factors.gradient[0] += 1e-6
        loss.backward()
        optimizer.step()
        if rank() == 1 and engine.state.iteration == moved_at:
            next(cggm.scores.buffers()).add_(1)

    engine = Engine(update)
    BalanceHandler(cggm).attach(engine)
    Replicas(network, cggm, seed=3).attach(engine)
    engine.run([late_batch(16, seed=seed) for seed in (0, 1)], max_epochs=epochs)
    return draws, torch.cat([p.flatten() for p in network.parameters()]).tolist()


def without_foreground() -> list[float]:
    """Weights after steps in which rank 1 saw background alone."""
    network = make("CGGM", "segmentation")
    cggm = build("CGGM", network, "segmentation").bind(network)
    batches = [TASKS["segmentation"].batch(8, NAMES, 2 * k + rank()) for k in range(3)]
    batches = [(inputs, target * (rank() == 0)) for inputs, target in batches]
    train(replicated(network), cggm, batches)
    return torch.cat([p.flatten() for p in network.parameters()]).tolist()


def lose_in_backward() -> None:
    """Rank 1 is gone when the gradients of rank 0 are to meet its own."""
    network = replicated(torch.nn.Linear(3, 2))
    network(torch.ones(4, 3)).sum().backward()
    loss = network(torch.ones(4, 3)).sum()
    if rank() == 1:
        raise UserError("Only rank 1 found this.", "Mend it.")
    time.sleep(3)
    loss.backward()


def look_around(folder: Path) -> None:
    """What this rank finds."""
    order = folder / "order.txt"
    found = {
        "uneven": gather_shards(shard(range(5))),
        "too few": gather_shards(shard(["only"])),
        "largest": largest_of_ranks(7 * rank()),
        "alike": refusal(lambda: check_ranks_agree({"data": "a", "configuration": 1})),
        "differing": refusal(lambda: check_ranks_agree({"data": "ab"[rank()], "configuration": 1})),
        "share": share_of_batch(8),
        "odd": refusal(lambda: share_of_batch(9)),
        "small": refusal(lambda: share_of_batch(2, least=2)),
        "first": first_alone(lambda: order.exists() or order.write_text("made")),
        "draws": trained()[0],
        "again": trained()[0],
        "weights": trained(epochs=50)[1],
        "spoilt": refusal(lambda: trained(spoilt_at=3)),
        "moved": refusal(lambda: trained(moved_at=4)),
        "background": without_foreground(),
    }
    (folder / f"{rank()}.json").write_text(json.dumps(found))


def main(argv: Sequence[str]) -> None:
    """Join, then do what is asked for."""
    what, folder = argv
    with joined("cpu"):
        print(f"rank {rank()} prints")
        if what == "look":
            look_around(Path(folder))
        elif what == "backward":
            lose_in_backward()
        elif what == "fault":
            raise RuntimeError("of rank 1 alone" if rank() else "of rank 0 alone")
        elif rank() == 1:
            raise UserError("Only rank 1 found this.", "Mend it.")
        wait_for_ranks()


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks._PATIENCE = 0.5
    end_process(run(ranked(main), sys.argv[1:]))
