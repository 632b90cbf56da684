"""Steps whose scaled gradients overflow in fp16, which a GradScaler then skips, at random.

The network has no dropout, whose random numbers a skipped step uses up, and no BatchNorm, whose
statistics its forward pass moves.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cggm import Balancer
from cggm.methods.agm import AGM
from cggm.methods.cggm import CGGM
from cggm.methods.ogm import OGM

_SHARE = 0.05
_SCALE, _TOO_LARGE = 2.0**8, 2.0**60
_NAMES, _FEATURES, _CLASSES = ("text", "audio", "vision"), 6, 4


def measure(quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    steps = 40 if quick else 400
    rng = np.random.default_rng(0)
    overflows = {*rng.choice(range(1, steps), round(_SHARE * steps), replace=False).tolist()}
    found = {name: _compare(name, steps, overflows) for name in ("CGGM", "OGM", "AGM")}
    return {
        "bar": "balancer, network and optimizer bit for bit those of the run without these steps",
        "holds": all(
            not any(counts["tensors that differ"].values())
            and counts["steps skipped"] == len(overflows)
            for counts in found.values()
        ),
        "figures": {"steps": steps, "overflows": len(overflows), **found},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    methods = [found for found in figures.values() if isinstance(found, dict)]
    differing = sum(sum(found["tensors that differ"].values()) for found in methods)
    return (
        "steps that a loss scaler skips",
        f"{figures['overflows']} of {figures['steps']}; {differing} tensors of {len(methods)} "
        "methods, networks or optimizers differ from a training without them",
        "",
    )


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(5, _FEATURES), nn.Tanh()) for name in _NAMES}
        )
        self.fusion = nn.Linear(_FEATURES * len(_NAMES), _FEATURES)
        self.output_layer = nn.Linear(_FEATURES, _CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        pairs = zip(self.encoders.values(), inputs.unbind(1), strict=True)
        return self.decode(dict(zip(_NAMES, (encoder(x) for encoder, x in pairs), strict=True)))

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.output_layer(self.fusion(torch.cat([*features.values()], 1)))
        return output


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(_FEATURES, _CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.output_layer(features)
        return output


def _compare(method: str, steps: int, overflows: set[int]) -> dict[str, Any]:
    states, skipped = zip(
        *(_train(method, steps, overflows, leave) for leave in (0, 1)), strict=True
    )
    return {
        "steps skipped": skipped[0],
        "tensors": {part: len(state) for part, state in states[0].items()},
        "tensors that differ": {
            part: sum(not torch.equal(a, b) for a, b in zip(state, states[1][part], strict=True))
            for part, state in states[0].items()
        },
    }


def _train(
    method: str, steps: int, overflows: set[int], leave: int
) -> tuple[dict[str, list[Tensor]], int]:
    """States at the end, and how many steps were skipped; ``leave`` leaves them out."""
    torch.manual_seed(0)
    network = _Network()
    balancer = _balancer(method).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=_SCALE, growth_interval=10**6)
    skipped = 0
    for step in range(steps):
        if step in overflows and leave:
            continue
        if step in overflows:
            scaler.update(_TOO_LARGE)
        scale = scaler.get_scale()
        _step(step, network, balancer, optimizer, scaler)
        skipped += scaler.get_scale() < scale
        scaler.update(_SCALE)
    state = {
        "balancer": _tensors(balancer.state_dict()),
        "network": _tensors(network.state_dict()),
        "optimizer": _tensors(optimizer.state_dict()),
    }
    balancer.unbind()
    return state, skipped


def _balancer(method: str) -> Balancer:
    loss = nn.CrossEntropyLoss()
    heads = {name: _Head() for name in _NAMES}
    if method == "AGM":
        return AGM(loss)
    return (CGGM if method == "CGGM" else OGM)(heads, loss, _accuracy)


def _step(
    step: int,
    network: nn.Module,
    balancer: Balancer,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, len(_NAMES), 5, generator=generator)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = balancer(network(inputs), inputs[:, :, :_CLASSES].sum(1).argmax(1))
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()


def _accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float().mean()


def _tensors(state: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors of a nested state, and its numbers as such, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        state = [*state.values()]
    if isinstance(state, list | tuple):
        return [tensor for entry in state for tensor in _tensors(entry)]
    return [torch.tensor(state)] if isinstance(state, int | float) else []
