"""One rank of the two-process contract: every method on its half of each batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cggm.methods import method_names
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import Batch, batches_for, batches_of, build, make, train
from tests.ranks import WORLD

ABSENCE = ("CGGM", "GuidedHeads", "MMPareto", "UnimodalLosses")


def halves(batches: Sequence[Batch], rank: int, world: int) -> list[Batch]:
    """This rank's share of each batch."""
    return [(inputs.chunk(world)[rank], target.chunk(world)[rank]) for inputs, target in batches]


def run(name: str, rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """What a method ends with on this rank."""
    network = make(name)
    mine = halves(batches_for(name), rank, world)
    balancer = build(name, network, trial_batches=mine[:2], **CONTRACTS[name].settings)
    wrapped = DistributedDataParallel(network) if world > 1 else network
    balancer.bind(wrapped)
    first = rank * len(mine[0][1])
    rows = train(wrapped, balancer, mine, first=first)
    balancer.unbind()
    state = balancer.state_dict()
    return {
        "network": network.state_dict(),
        "state": {key: value for key, value in state.items() if isinstance(value, Tensor)},
        "terms": {str(i): row["term"] for i, row in enumerate(rows) if "term" in row},
    }


def masks_of(batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Half of the samples lack the text: of two ranks, the first one's all in every other batch."""
    text = torch.arange(16) >= 8
    return [{"text": text if i % 2 == 0 else text.roll(4)} for i, _ in enumerate(batches)]


def run_with_absence(name: str, rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """What a method ends with on this rank where samples lack a modality."""
    network, settings = make(name), dict(CONTRACTS[name].settings)
    if name in ("CGGM", "GuidedHeads"):
        settings["gate"] = None  # whose chance comes from the targets of a rank
    if name == "GuidedHeads":
        settings["nu"] = 0.0  # whose pass has draws of a rank
    balancer = build(name, network, **settings)
    wrapped = DistributedDataParallel(network) if world > 1 else network
    balancer.bind(wrapped)
    masks = [{"text": m["text"].chunk(world)[rank]} for m in masks_of(batches_of())]
    train(wrapped, balancer, halves(batches_of(), rank, world), masks=masks)
    return {"network": network.state_dict(), "heads": balancer.heads.state_dict()}


def drawn_losses(rank: int, world: int) -> Tensor:
    """Loss of one batch, or of this rank's half, under guided heads by 200 draws."""
    found = []
    for seed in range(200):
        network = make("GuidedHeads")
        balancer = build("GuidedHeads", network, gate=None, seed=seed).bind(network)
        ((inputs, target),) = halves(batches_of(count=1), rank, world)
        found.append(balancer(network(inputs), target).detach())
        balancer.unbind()
    return torch.stack(found)


def found_of_rank(rank: int) -> dict[str, object]:
    """What every method ends with on this rank, or what it says where it refuses."""
    found: dict[str, object] = {}
    for name in method_names():
        try:
            found[name] = run(name, rank, WORLD)
        except (ValueError, RuntimeError) as error:
            found[name] = str(error)
    found["absence"] = {name: run_with_absence(name, rank, WORLD) for name in ABSENCE}
    found["draws"] = drawn_losses(rank, WORLD)
    return found
