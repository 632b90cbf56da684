"""One training of the benchmark with a known answer."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.known.data import (
    SCENARIOS,
    SCORES,
    SLOW_SCALES,
    Inputs,
    make_data,
    task_loss,
)
from benchmarks.known.networks import Head, LateNetwork, Network
from cggm import Balancer, Chain
from cggm.late_fusion import FusionRule, late_rule
from cggm.methods import bound_balancer
from cggm.scores import ratio_score, score_counts
from cggm.tensors import zeros_of
from cggm.trials import Course, Trials

BATCH = {"classification": 64, "regression": 64, "segmentation": 16}
RATES = {
    "sgd": {"classification": 0.02, "regression": 0.02, "segmentation": 0.05},
    "adam": {"classification": 1e-3, "regression": 1e-3},
}
RIDGE = 1e-2


@dataclass(frozen=True)
class Replay:
    """Factors or weights that a control takes from another training of the same case.

    Args:
        row: What is trained for them.
        reading: Which of its readings.
        drawn: Whether all steps' are given, to draw from, in place of each modality's mean.
        argument: Which of the control's arguments takes them.
        complement: Whether it takes what they lack of one.
    """

    row: "Row"
    reading: str = "term"
    drawn: bool = False
    argument: str = "factors"
    complement: bool = False


@dataclass(frozen=True)
class Row:
    """A method and its settings.

    Args:
        method: A public name of ``cggm.methods``, or several with ``+`` between them.
        settings: Its arguments.
        rule: Of late fusion, see :func:`cggm.late_fusion.late_rule`; ``None`` for a network that
            fuses features.
        of_epochs: Settings that are a share of the epochs, rounded, 1 at least.
        replays: For a control, what it takes from whom.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rule: FusionRule | None = None
    of_epochs: Mapping[str, float] = field(default_factory=dict)
    replays: Replay | None = None


@dataclass(frozen=True)
class Case:
    """What is trained on what."""

    task: str
    scenario: str
    optimizer: str
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities of the scenario."""
        return SCENARIOS[self.scenario].names


def make_optimizer(case: Case, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    rate = RATES[case.optimizer][case.task]
    if case.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9)
    return torch.optim.Adam(parameters, rate)


def run(case: Case, row: Row, epochs: int) -> dict[str, Any]:
    """Train once; scores on test data, in hundredths, higher is better."""
    torch.set_num_threads(1)
    if row.replays is not None:
        row = replace(row, settings=replayed(case, row, row.replays, epochs))
    data, network, history, seconds = train(case, row, epochs)
    return judge(case, network, data) | {"readings": by_fifths(history), "seconds": seconds}


def replayed(case: Case, control: Row, replay: Replay, epochs: int) -> dict[str, Any]:
    """Settings of a control, those of its own included."""
    history = train(case, replay.row, epochs)[2]
    read = torch.stack([readings[replay.reading] for readings in history])
    columns = (1 - read if replay.complement else read).T.tolist()
    taken = columns if replay.drawn else [statistics.mean(column) for column in columns]
    return {**control.settings, replay.argument: dict(zip(case.names, taken, strict=True))}


def train(
    case: Case, row: Row, epochs: int
) -> tuple[Mapping[str, Any], nn.Module, list[dict[str, Tensor]], float]:
    """Data, trained network, readings of every step, and seconds."""
    data = make_data(
        case.task,
        SCENARIOS[case.scenario],
        SLOW_SCALES[case.task, case.optimizer],
        case.seed,
    )
    torch.manual_seed(case.seed)
    network = make_network(case, row.rule)
    feed = partial(batches, data["train"], case)
    balancer = make_balancer(case, row, network, data, feed, epochs)
    start = time.perf_counter()
    history = fit(case, network, balancer, feed, epochs)
    return data, network, history, time.perf_counter() - start


def make_network(case: Case, rule: FusionRule | None) -> nn.Module:
    if rule is None:
        return Network(case.task, case.names)
    late = late_rule(rule, regression=case.task == "regression")
    return LateNetwork(case.task, late, case.names)


def make_balancer(
    case: Case,
    row: Row,
    network: nn.Module,
    data: Mapping[str, Any],
    feed: Callable[..., Any],
    epochs: int,
) -> Balancer:
    torch.manual_seed(case.seed + 1000)
    valid = data["valid"]
    optimizer = partial(make_optimizer, case)
    trials = partial(
        Trials,
        network,
        task_loss(case.task),
        feed,
        lambda epoch: [valid],
        optimizer,
        course=Course(epochs),
    )
    parts: dict[str, Callable[[], Any]] = {
        "task_loss": lambda: task_loss(case.task),
        "heads": lambda: {name: Head(case.task) for name in case.names},
        "score": lambda: SCORES[case.task],
        "samples": lambda: len(data["train"][1]),
        "trials": trials,
        "held_out": trials,
    }
    shares = {name: max(1, round(share * epochs)) for name, share in row.of_epochs.items()}
    balancer = bound_balancer(row.method, {**row.settings, **shares}, parts, network)
    for method in (balancer, *(balancer.parts if isinstance(balancer, Chain) else ())):
        method.heads_follow = False  # heads of all methods learn alike, so that controls match
    return balancer


def batches(
    split: tuple[Inputs, Tensor], case: Case, epoch: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The same batches in the same order for every method."""
    for index in positions(split, case, epoch):
        yield {name: x[index] for name, x in split[0].items()}, split[1][index]


def positions(split: tuple[Inputs, Tensor], case: Case, epoch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1000 * case.seed + epoch)
    return torch.randperm(len(split[1]), generator=generator).split(BATCH[case.task])


def fit(
    case: Case,
    network: nn.Module,
    balancer: Balancer,
    feed: Callable[[int], Iterator[tuple[dict[str, Tensor], Tensor]]],
    epochs: int,
) -> list[dict[str, Tensor]]:
    """Train; the readings of every step."""
    optimizer = make_optimizer(case, network.parameters())
    torch.manual_seed(case.seed + 2000)
    history: list[dict[str, Tensor]] = []
    for epoch in range(1, epochs + 1):
        balancer.start_epoch(epoch)
        for index, (inputs, target) in zip(
            positions(feed.args[0], case, epoch), feed(epoch), strict=True
        ):
            balancer.identify(index)
            optimizer.zero_grad()
            balancer(network(inputs), target).backward()
            optimizer.step()
            history.append({k: v.detach().clone() for k, v in balancer.readings.items()})
        balancer.end_epoch(epoch)
    balancer.unbind()
    return history


def by_fifths(history: list[dict[str, Tensor]]) -> dict[str, list[Any]]:
    """Mean of each reading over each fifth of the steps."""
    parts = torch.arange(len(history)).chunk(5)
    return {
        name: [torch.stack([history[i][name] for i in part]).mean(0).tolist() for part in parts]
        for name in history[0]
        if all(name in readings for readings in history)
    }


@torch.no_grad()
def judge(case: Case, network: nn.Module, data: Mapping[str, Any]) -> dict[str, Any]:
    """Score, score without each modality, and scores of linear probes of each encoder."""
    network.eval()
    (inputs, target), (known, labels) = data["test"], data["train"]
    features = {name: network.encoders[name](inputs[name]) for name in case.names}
    trained = {name: network.encoders[name](known[name]) for name in case.names}
    return {
        "score": score(case, network.decode(features), target),
        "train": score(case, network.decode(trained), labels),
        "without": {
            name: score(case, network.decode(features | {name: zeros_of(features[name])}), target)
            for name in case.names
        },
        "probe": {
            name: score(case, probe(case, trained[name], labels, features[name]), target)
            for name in case.names
        },
    }


def score(case: Case, prediction: Tensor, target: Tensor) -> float:
    return 100 * float(ratio_score(score_counts(SCORES[case.task], prediction, target)[None]))


def probe(case: Case, features: Tensor, target: Tensor, others: Tensor) -> Tensor:
    """Predictions of ridge regression from features to targets, the same for every method."""
    x, z = _rows(features), _rows(others)
    classes = int(target.max()) + 1
    y = target[:, None] if case.task == "regression" else F.one_hot(target.flatten(), classes)
    gram = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1])
    found = z @ torch.linalg.solve(gram, x.T @ y.float() / len(x))
    if case.task == "segmentation":
        return found.reshape(len(others), *others.shape[2:], classes).movedim(-1, 1)
    return found.squeeze(-1)


def _rows(features: Tensor) -> Tensor:
    flat = features.movedim(1, -1).reshape(-1, features.shape[1])
    return torch.cat([flat, torch.ones(len(flat), 1)], 1)
