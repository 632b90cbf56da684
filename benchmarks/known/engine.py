"""Guided heads, what they are compared with and their controls, trained with all seeds at once.

Networks of all seeds are stacked along a first axis, so that a layer of all of them is one batched
matrix product. Data, initial weights, batches and draws are those of ``benchmarks.known.training``
seed by seed, and results equal its to rounding (``tests/benchmarks/test_engine.py``). Serves
classification and regression.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.known.data import SCENARIOS, SLOW_SCALES, make_data
from benchmarks.known.networks import Head, Network
from benchmarks.known.training import Case, make_optimizer, positions
from cggm.methods.guided import guided_weights

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """Settings of :class:`cggm.methods.GuidedHeads`; the default is joint training.

    Args:
        mu: Weight of the heads' losses.
        nu: Weight of the extra pass.
        shares: ``"live"``, ``"shuffled"`` or ``None``.
        gate: Whether heads are trusted by their signal.
        temperature: Of classes; regression takes three times the mean loss.
        patience: Decay of trust.
        switch: Whether shares of classes count by the correlation of losses.
        factors: Constant weights by seed and modality, ``(S, M)``; with recorded rows,
            ``(S, steps, M)``, one is drawn at each step; ``None`` for live ones.
    """

    mu: float = 0.0
    nu: float = 0.0
    shares: str | None = None
    gate: bool = True
    temperature: float = 1.0
    patience: float = 0.99
    switch: bool = True
    factors: Tensor | None = None


JOINT = Setting()
UNIMODAL = Setting(mu=1.0, gate=False)
GUIDED = Setting(mu=1.0, nu=0.25, shares="live")


@dataclass
class Judges:
    """Scores of the heads over time, and the trust in them, by seed and modality."""

    score: Tensor
    chance: Tensor
    trust: Tensor
    correlation: Tensor
    record: list[Tensor] = field(default_factory=list)

    def gates(self, score: Tensor, chance: Tensor, patience: float) -> Tensor:
        """Gates after a step with these scores, ``(S, M)``."""
        self.score = torch.lerp(score, self.score, 0.9)
        self.chance = torch.lerp(chance, self.chance, 0.9)
        signal = (self.score - self.chance).clamp_min(0)
        best = signal.amax(1, keepdim=True)
        gates = torch.where(best > 0, signal / torch.where(best > 0, best, 1.0), 0.0)
        self.trust = torch.maximum(gates, torch.lerp(gates, self.trust, patience))
        return gates

    def opposition(self, losses: Tensor, step: int) -> Tensor:
        """How far shares count by the correlation of the losses ``(S, B, M)``, ``(S, 1, 1)``."""
        apart = losses - losses.mean(1, keepdim=True)
        apart = apart / apart.norm(dim=1, keepdim=True)
        pairs = apart.transpose(1, 2) @ apart
        count = losses.shape[2]
        found = (pairs.sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))
        self.correlation = torch.lerp(found, self.correlation, 0.99)
        mean = self.correlation / (1 - 0.99 ** (step + 1))
        return ((-mean - 0.1) / 0.2).clamp(0, 1)[:, None, None]


class Engine:
    """Trainings of one case with many seeds.

    Args:
        task: ``"classification"`` or ``"regression"``.
        scenario: See :data:`benchmarks.known.data.SCENARIOS`.
        optimizer: ``"sgd"`` or ``"adam"``.
        seeds: Of data, weights and batches.
    """

    def __init__(self, task: str, scenario: str, optimizer: str, seeds: Sequence[int]) -> None:
        self.cases = [Case(task, scenario, optimizer, seed) for seed in seeds]
        self.task, self.names = task, SCENARIOS[scenario].names
        self.data = [_data_of(case) for case in self.cases]
        self.test = self._stack("test")
        self.known = self._stack("train")

    def train(self, setting: Setting, epochs: int) -> tuple[Weights, Tensor]:
        """Weights of all networks, and the modalities' weights at each step, ``(S, steps, M)``."""
        network, heads = self._initial(setting)
        optimizer = make_optimizer(self.cases[0], list(network.values()))
        head_optimizer = torch.optim.Adam(list(heads.values()), lr=5e-4) if heads else None
        start = torch.zeros(len(self.cases), len(self.names))
        judges = Judges(start, start, torch.ones_like(start), torch.zeros(len(self.cases)))
        for step, (inputs, target) in enumerate(self._batches(epochs)):
            features = {n: _encode(network, n, inputs[n]) for n in self.names}
            total = self._losses(_fuse(network, self._joined(features)), target).mean(1).sum()
            taught = None
            if heads:
                detached = {n: h.detach() for n, h in features.items()}
                said = [_head(heads, n, detached[n]) for n in self.names]
                taught = sum(self._losses(z, target).mean(1).sum() for z in said)
                total = total + self._guided(
                    setting, step, network, heads, features, said, target, judges
                )
            own = torch.autograd.grad(taught, list(heads.values())) if heads else ()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if head_optimizer is not None:
                for parameter, gradient in zip(heads.values(), own, strict=True):
                    parameter.grad = gradient
                head_optimizer.step()
        record = torch.stack(judges.record, 1) if judges.record else start[:, None]
        return network, record

    @torch.no_grad()
    def judge(self, network: Weights) -> dict[str, list[float]]:
        """Score with all modalities and without each, in hundredths, one for each seed."""
        inputs, target = self.test
        features = {n: _encode(network, n, inputs[n]) for n in self.names}
        found = {"score": self._scores(_fuse(network, self._joined(features)), target)}
        for name in self.names:
            left = features | {name: torch.zeros_like(features[name])}
            found[f"without {name}"] = self._scores(_fuse(network, self._joined(left)), target)
        return {key: (100 * value).tolist() for key, value in found.items()}

    def _guided(
        self,
        setting: Setting,
        step: int,
        network: Weights,
        heads: Weights,
        features: Mapping[str, Tensor],
        said: Sequence[Tensor],
        target: Tensor,
        judges: Judges,
    ) -> Tensor:
        """What is added to the task loss, the sum over seeds."""
        with torch.no_grad():
            score, chance = (
                torch.stack([self._scores(z, t) for z in said], 1)
                for t in (target, target.roll(1, 1))
            )
            gates = judges.gates(score, chance, setting.patience)
            trust = judges.trust
            if not setting.gate:
                gates = trust = torch.ones_like(gates)
            weights = self._weights(setting, step, gates, trust)
        judges.record.append(weights)
        constant = {key: value.detach() for key, value in heads.items()}
        losses = torch.stack(
            [self._losses(_head(constant, n, features[n]), target) for n in self.names], 2
        )
        strength = gates[:, None]
        if setting.switch and self.task == "classification":
            strength = strength * judges.opposition(losses.detach(), step)
        shares = self._shares(setting, step, losses.detach(), strength)
        total = setting.mu * (weights * (shares * losses).mean(1)).sum()
        if setting.nu > 0:
            kept = self._kept(step, weights[:, None] * shares)
            left = {n: h * kept[..., i, None] for i, (n, h) in enumerate(features.items())}
            alone = self._losses(_fuse(network, self._joined(left)), target).mean(1)
            total = total + setting.nu * (weights.sum(1) * alone).sum()
        return total

    def _weights(self, setting: Setting, step: int, gates: Tensor, trust: Tensor) -> Tensor:
        factors = setting.factors
        if factors is None and not setting.gate:
            return torch.ones_like(gates)
        if factors is None:
            return torch.stack([guided_weights(*row) for row in zip(gates, trust, strict=True)])
        if factors.ndim == 2:
            return factors
        rows = [Random(f"{c.seed} {step}").randrange(factors.shape[1]) for c in self.cases]
        return factors[range(len(rows)), rows]

    def _shares(self, setting: Setting, step: int, losses: Tensor, strength: Tensor) -> Tensor:
        """Shares r, ``(S, B, M)``."""
        if setting.shares is None:
            return torch.ones_like(losses)
        heat = torch.tensor(setting.temperature)
        if self.task == "regression":
            heat = 3 * losses.mean((1, 2), keepdim=True)
        parts = (-losses / heat).softmax(2)
        shares = (parts / parts.mean(1, keepdim=True)).clamp_max(len(self.names))
        shares = 1 + strength * (shares - 1)
        if setting.shares == "live":
            return shares
        order = torch.stack([self._uniform("order", c, step, losses) for c in self.cases])
        return shares.gather(1, order.argsort(1).expand_as(shares))

    def _kept(self, step: int, chances: Tensor) -> Tensor:
        drawn = torch.stack([self._uniform("kept", c, step, chances) for c in self.cases])
        below = chances.cumsum(2) / chances.sum(2, keepdim=True)
        return F.one_hot((below <= drawn).sum(2), chances.shape[2])

    def _uniform(self, what: str, case: Case, step: int, like: Tensor) -> Tensor:
        key = Random(f"{what} {case.seed} {step} 1 0").getrandbits(63)
        return torch.rand(like.shape[1], 1, generator=torch.Generator().manual_seed(key))

    def _losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Of each sample, ``(S, B)``."""
        if self.task == "regression":
            return (prediction.squeeze(-1) - target) ** 2
        flat = F.cross_entropy(prediction.flatten(0, 1), target.flatten(), reduction="none")
        return flat.view(target.shape)

    def _scores(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.task == "regression":
            return -(prediction.squeeze(-1) - target).abs().mean(1)
        return (prediction.argmax(-1) == target).float().mean(1)

    def _joined(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([features[name] for name in self.names], -1)

    def _stack(self, split: str) -> tuple[dict[str, Tensor], Tensor]:
        parts = [data[split] for data in self.data]
        inputs = {n: torch.stack([own[n] for own, _ in parts]) for n in self.names}
        return inputs, torch.stack([target for _, target in parts])

    def _batches(self, epochs: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        inputs, target = self.known
        rows = torch.arange(len(self.cases))[:, None]
        for epoch in range(1, epochs + 1):
            order = [
                positions(d["train"], c, epoch) for d, c in zip(self.data, self.cases, strict=True)
            ]
            for own in zip(*order, strict=True):
                index = torch.stack(own)
                yield {n: x[rows, index] for n, x in inputs.items()}, target[rows, index]

    def _initial(self, setting: Setting) -> tuple[Weights, Weights]:
        """Weights of all networks and heads as the plain training begins with them."""
        networks, heads = [], []
        for case in self.cases:
            torch.manual_seed(case.seed)
            networks.append(Network(self.task, self.names))
            torch.manual_seed(case.seed + 1000)
            heads.append(nn.ModuleDict({n: Head(self.task) for n in self.names}))
        guided = setting.mu > 0 or setting.nu > 0
        return _stacked(networks), _stacked(heads) if guided else {}


@cache
def _data_of(case: Case) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    scale = SLOW_SCALES[case.task, case.optimizer]
    return make_data(case.task, SCENARIOS[case.scenario], scale, case.seed)


def _stacked(modules: Sequence[nn.Module]) -> Weights:
    states = [dict(module.named_parameters()) for module in modules]
    return {
        key: torch.stack([state[key].detach() for state in states]).requires_grad_()
        for key in states[0]
    }


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    bias, weight = weights[f"{name}.bias"], weights[f"{name}.weight"]
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def _encode(network: Weights, name: str, x: Tensor) -> Tensor:
    hidden = _linear(network, f"encoders.{name}.0", x).relu()
    return _linear(network, f"encoders.{name}.2", hidden).relu()


def _fuse(network: Weights, joined: Tensor) -> Tensor:
    return _linear(network, "output_layer", _linear(network, "body.0", joined).relu())


def _head(heads: Weights, name: str, features: Tensor) -> Tensor:
    hidden = _linear(heads, f"{name}.body.0", features).relu()
    return _linear(heads, f"{name}.output_layer", hidden)
