"""Trainings with a guard, in one process and in one of two ranks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from cggm import CGGM, BalanceHandler
from cggm.balancer import Balancer
from cggm.errors import UserError
from cggm.runs.loop.nonfinite import NonFiniteGuard
from cggm_seg.evaluation.regions import region_dice_counts
from cggm_seg.training.losses import SoftDiceCELoss
from tests.cggm.networks import Convolutional, ConvolutionalHead, late_batch, make_cggm, make_late

SAVED = Path("saved")


def batches_of(count: int, bad: tuple[int, ...] = (), value: float = float("nan")) -> list[dict]:
    """Batches with the names of their samples; in bad ones a value is not finite."""
    batches = []
    for number in range(count):
        inputs, target = late_batch(seed=number)
        names = [f"{number}-{sample}" for sample in range(len(target))]
        inputs[3, 1, 2] = value if number in bad else inputs[3, 1, 2]
        batches.append({"inputs": inputs, "target": target, "names": names})
    return batches


def normed(network: nn.Module) -> nn.Module:
    """The network with running statistics in its fusion, which a bad batch spoils."""
    network.fusion.append(nn.BatchNorm1d(6))
    return network


@dataclass
class Training:
    """A network, its optimizer, a method and a guard on a plain engine."""

    network: nn.Module
    balancer: Balancer
    skip: bool = False
    clip: float = 0.0
    accumulation: int = 1
    scaler: torch.amp.GradScaler | None = None
    wrapped: nn.Module | None = None
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.saved: list[tuple[int, dict]] = []
        self.guard = NonFiniteGuard(
            self.network,
            self.optimizer,
            self.balancer,
            names=lambda batch: batch["names"],
            save=self.save,
            skip=self.skip,
            **self.options,
        )

    def run(self, batches, max_epochs=1):
        self.engine = Engine(self.step)
        self.engine.state.scaler = self.scaler
        BalanceHandler(self.balancer).attach(self.engine)
        self.guard.attach(self.engine)
        self.engine.run(batches, max_epochs=max_epochs)
        return self

    def save(self, iteration: int) -> Path:
        self.saved.append((iteration, self.state()))
        return SAVED

    def step(self, engine: Engine, batch: dict) -> dict[str, Tensor]:
        first = (engine.state.iteration - 1) % self.accumulation == 0
        if first:
            self.optimizer.zero_grad()
        self.balancer.identify(torch.arange(len(batch["target"])))
        prediction = (self.wrapped or self.network)(batch["inputs"])
        loss = self.balancer(prediction, batch["target"])
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        (scaled / self.accumulation).backward()
        engine.state.output = output = {"loss": loss.detach()}
        if engine.state.iteration % self.accumulation == 0:
            self.update()
        return output

    def update(self) -> None:
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if self.clip:
            self.guard.check()
            clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that a step moves."""
        parts = {"network": self.network, "balancer": self.balancer}
        found = {f"{p}.{k}": v for p, m in parts.items() for k, v in m.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        return {k: v.clone() for k, v in found.items() if isinstance(v, Tensor)}


def plain_training(**settings) -> Training:
    """CGGM on a network with running statistics."""
    network, heads = make_late()
    normed(network)
    return Training(network, make_cggm(heads, lam=0.3).bind(network), **settings)


def on_a_rank(rank: int, skip: bool) -> dict:
    """A training of which the third batch of rank 1 alone is bad."""
    network, heads = make_late()
    wrapped = DistributedDataParallel(network)
    options = {"skip": skip, "wrapped": wrapped, "options": {"most_skipped": 0.5}}
    training = Training(network, make_cggm(heads).bind(wrapped), **options)
    batches = batches_of(5, bad=(2,) if rank else ())
    for batch in batches:
        batch["names"] = [f"rank{rank}-{name}" for name in batch["names"]]
    message = ""
    try:
        training.run(batches)
    except UserError as error:
        message = str(error)
    return {"message": message, "state": training.state()}


def without_foreground(rank: int) -> Tensor:
    """Losses and readings of a segmentation whose first rank sees background alone."""
    torch.manual_seed(0)
    network = Convolutional(classes=4)
    heads = {name: ConvolutionalHead(classes=4) for name in network.encoders}
    balancer = CGGM(heads, SoftDiceCELoss(), region_dice_counts)
    wrapped = DistributedDataParallel(network)
    training = Training(network, balancer.bind(wrapped), wrapped=wrapped)
    target = torch.full((2, 8, 8), 3 * rank)
    batch = {"inputs": torch.randn(2, 3, 8, 8), "target": target, "names": ["a", "b"]}
    training.run([batch] * 3)
    readings = [value.flatten() for value in balancer.readings.values()]
    return torch.cat([training.engine.state.output["loss"].reshape(1), *readings])


def found_of_rank(rank: int) -> dict[str, Any]:
    """What this rank saw of each kind of batch."""
    return {
        "stop": on_a_rank(rank, skip=False),
        "skip": on_a_rank(rank, skip=True),
        "background": without_foreground(rank),
    }
