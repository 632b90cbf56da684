"""Networks, batches and parts of each task, and the loop in which a method has to prove itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.methods import build_balancer
from cggm.trials import Trials
from tests.cggm.contract import CONTRACTS
from tests.cggm.networks import (
    NAMES,
    Additive,
    AdditiveMaps,
    Convolutional,
    ConvolutionalHead,
    Gated,
    Late,
    LateFused,
    LinearHead,
    accuracy,
    late_batch,
)
from tests.quantifiers import every

Batch = tuple[Tensor, Tensor]
EPOCHS = (1, 1, 2, 2, 3, 4)


@dataclass(frozen=True)
class Task:
    """A kind of task: what is made of the modalities' names, and what a prediction is worth."""

    network: Callable[[Sequence[str]], nn.Module]
    head: Callable[[], nn.Module]
    loss: nn.Module
    score: Callable[[Tensor, Tensor], Tensor]
    batch: Callable[[int, Sequence[str], int], Batch]


def closeness(prediction: Tensor, target: Tensor) -> Tensor:
    """Negated mean absolute error."""
    return -(prediction - target).abs().mean()


def values(size: int, names: Sequence[str], seed: int) -> Batch:
    """Inputs of :class:`Late` and one number per sample, ``(B, 1)``."""
    inputs, _ = late_batch(size, names, seed)
    return inputs, inputs[:, :, 0].sum(1, keepdim=True).tanh()


def images(size: int, names: Sequence[str], seed: int) -> Batch:
    """Images ``(B, M, 8, 8)`` and one of three classes per pixel."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, len(names), 8, 8, generator=generator)
    return inputs, (inputs.mean(1) > 0).long() + (inputs[:, 0] > 0.5)


TASKS = {
    "classification": Task(Late, LinearHead, nn.CrossEntropyLoss(), accuracy, late_batch),
    "regression": Task(
        partial(Late, classes=1), partial(LinearHead, classes=1), nn.MSELoss(), closeness, values
    ),
    "segmentation": Task(Convolutional, ConvolutionalHead, nn.CrossEntropyLoss(), accuracy, images),
}


def names_of(count: int) -> list[str]:
    """Names of a number of modalities."""
    return [f"modality {chr(97 + i)}" for i in range(count)]


def make(name: str, task: str = "", names: Sequence[str] = NAMES, seed: int = 0):
    """The network that a method needs for a task, or its own one, always the same for a seed."""
    torch.manual_seed(seed)
    task = task or CONTRACTS[name].task
    if CONTRACTS[name].gated and task != "segmentation":
        return Gated(names, classes=4 if task == "classification" else 1)
    network = TASKS[task].network(names)
    rule = CONTRACTS[name].rules.get(task)
    return network if rule is None else LateFused(network.encoders, TASKS[task].head, rule)


def additive(name: str, names: Sequence[str] = NAMES) -> nn.Module:
    """A network for its own task that does not depend on the order of its modalities."""
    torch.manual_seed(0)
    if CONTRACTS[name].rules or CONTRACTS[name].gated:
        return make(name, names=names)
    return AdditiveMaps(names) if CONTRACTS[name].task == "segmentation" else Additive(names)


def batches_of(
    task: str = "classification", names: Sequence[str] = NAMES, count: int = len(EPOCHS)
) -> list[Batch]:
    """Batches of 16 samples."""
    return [TASKS[task].batch(16, names, seed) for seed in range(count)]


def batches_for(name: str, count: int = len(EPOCHS)) -> list[Batch]:
    """Batches of a method's own task."""
    return batches_of(CONTRACTS[name].task, count=count)


def build(
    name: str,
    network: nn.Module,
    task: str = "",
    *,
    trial_batches: Iterable[Batch] | None = None,
    heads: nn.ModuleDict | None = None,
    **settings: object,
) -> Balancer:
    """A method, unbound, for a network of :func:`make`."""
    kind, names = TASKS[task or CONTRACTS[name].task], list(network.encoders)
    torch.manual_seed(1)
    heads = heads or nn.ModuleDict({n: kind.head() for n in names})
    batches = trial_batches or [kind.batch(16, names, seed) for seed in (7, 8)]
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    trials = partial(Trials, network, kind.loss, lambda e: batches, lambda e: batches[:1], sgd)
    parts = {
        "task_loss": lambda: kind.loss,
        "heads": lambda: {n: deepcopy(heads[n]) for n in names},
        "score": lambda: kind.score,
        "head_optimizer": lambda: sgd,
        "samples": lambda: 16,
        "bypass": lambda: getattr(network, "units", None),
        "trials": trials,
        "held_out": trials,
    }
    return build_balancer(name, settings, parts)


def acting(name: str, network: nn.Module, task: str = "", **more) -> Balancer:
    """A method with the settings under which it acts, bound to a network of :func:`make`."""
    return build(name, network, task, **{**CONTRACTS[name].settings, **more}).bind(network)


def neutral(name: str, network: nn.Module, task: str = "") -> Balancer:
    """A method with its neutral settings, bound to a network of :func:`make`."""
    return build(name, network, task, **CONTRACTS[name].neutral).bind(network)


def train(
    network: nn.Module,
    criterion: nn.Module,
    batches: Sequence[Batch],
    *,
    epochs: Sequence[int] = EPOCHS,
    announced: int = 0,
    parts: int = 1,
    first: int = 0,
    masks: Sequence[Mapping[str, Tensor]] = (),
) -> list[dict[str, Tensor]]:
    """A bare loop of plain SGD; returns the readings and the loss of each call.

    Args:
        network: Called on each batch's inputs.
        criterion: A bound method or a task loss.
        batches: One per optimizer step.
        epochs: Epoch of each batch.
        announced: The epoch under way.
        parts: Micro-batches that each batch is cut into.
        first: Position of each batch's first sample in the training data.
        masks: Which samples of each batch have which modality; none for all.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    balancer = criterion if isinstance(criterion, Balancer) else None
    rows = []
    for index, (epoch, (inputs, target)) in enumerate(zip(epochs, batches, strict=False)):
        if balancer is not None and epoch != announced:
            balancer.start_epoch(epoch)
        announced = epoch
        optimizer.zero_grad()
        positions = torch.arange(first, first + len(target))
        pieces = (tensor.chunk(parts) for tensor in (inputs, target, positions))
        told = {name: m.chunk(parts) for name, m in masks[index].items()} if masks else {}
        for part, piece in enumerate(zip(*pieces, strict=True)):
            if told:
                criterion.present({name: chunks[part] for name, chunks in told.items()})
            loss = _call(network, criterion, *piece)
            (loss / parts).backward()
            rows.append({"loss": loss.detach(), **_readings(balancer)})
        optimizer.step()
    return rows


def _call(network: nn.Module, criterion: nn.Module, inputs, target, positions) -> Tensor:
    if isinstance(criterion, Balancer):
        criterion.identify(positions)
    return criterion(network(inputs), target)


def _readings(balancer: Balancer | None) -> dict[str, Tensor]:
    return {} if balancer is None else {k: v.clone() for k, v in balancer.readings.items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks are equal bit for bit."""
    theirs = b.state_dict()
    return every(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def near(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal but for rounding."""
    return every(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-5) for key in a)
