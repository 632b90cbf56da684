"""Small networks and heads for the simulated tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.known.data import CODE, NAMES, NUISANCE, OUTPUTS, Inputs
from cggm.late_fusion import LateFusion

WIDTH, CHANNELS = 32, 8


class Network(nn.Module):
    """Small encoders, fusion by concatenation, one output layer."""

    def __init__(self, task: str, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: make_encoder(task) for name in names})
        self.body = make_body(task, len(names))
        self.output_layer = make_output_layer(task)

    def forward(self, inputs: Inputs) -> Tensor:
        """Prediction from inputs by modality."""
        return self.decode({name: self.encoders[name](inputs[name]) for name in self.encoders})

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        """Prediction from features by modality."""
        return read(self.output_layer(self.body(torch.cat(list(features.values()), 1))))


class LateNetwork(nn.Module):
    """The same encoders with a head each, whose predictions are combined."""

    def __init__(self, task: str, rule: str, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: make_encoder(task) for name in names})
        heads = {name: Head(task) for name in names}
        self.output_layer = LateFusion(heads, rule, shared=rule == "entropy")

    def forward(self, inputs: Inputs) -> Tensor:
        """Prediction from inputs by modality."""
        return self.decode({name: self.encoders[name](inputs[name]) for name in self.encoders})

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        """Prediction from features by modality."""
        return self.output_layer.combine(self.output_layer(features))


class Head(nn.Module):
    """What judges one modality: the network's fusion and output layer for that one alone."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.body = make_body(task, 1)
        self.output_layer = make_output_layer(task)

    def forward(self, features: Tensor) -> Tensor:
        """Prediction from one modality's features."""
        return read(self.output_layer(self.body(features)))


def make_encoder(task: str) -> nn.Module:
    if task == "segmentation":
        first: nn.Module = nn.Conv2d(3, CHANNELS, 3, padding=1)
        second: nn.Module = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    else:
        first, second = nn.Linear(CODE + NUISANCE, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def make_body(task: str, modalities: int) -> nn.Module:
    if task == "segmentation":
        return nn.Sequential(nn.Conv2d(modalities * CHANNELS, CHANNELS, 1), nn.ReLU())
    return nn.Sequential(nn.Linear(modalities * WIDTH, WIDTH), nn.ReLU())


def make_output_layer(task: str) -> nn.Module:
    if task == "segmentation":
        return nn.Conv2d(CHANNELS, OUTPUTS[task], 1)
    return nn.Linear(WIDTH, OUTPUTS[task])


def read(output: Tensor) -> Tensor:
    """Values of shape ``(B,)`` where there is one output."""
    return output.squeeze(-1) if output.shape[-1] == 1 else output
