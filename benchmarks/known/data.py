"""Simulated tasks of two or three modalities whose information and learning speed are set by us.

Each modality observes the same code of a sample with noise of its own. Information is the ratio of
code to noise, speed is the scale of both against nuisance inputs of unit variance: a scaled
observation tells exactly as much and is learnt later. A shuffled observation shows the code of
another sample: it looks alike and tells nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ("A", "B")
TASKS = ("classification", "regression", "segmentation")
OUTPUTS = {"classification": 6, "regression": 1, "segmentation": 3}
CODE, NUISANCE, IMAGE = 8, 12, 16
SIZES = {"classification": 1200, "regression": 2000, "segmentation": 200}
TEST = {"classification": 2000, "regression": 2000, "segmentation": 500}

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scenario:
    """What is set, and what a balancing method should then do.

    Args:
        text: One line.
        expectation: Written before any run.
        noise: Noise of each modality, as a factor of the task's.
        slow: Modalities at the task's slow scale.
        shuffled: Share of the samples in which each modality shows another sample's code; shares of
            two modalities do not overlap.
        absent: The modality without which the scenario is judged, or ``None``.
        names: Its modalities.
    """

    text: str
    expectation: str
    noise: Mapping[str, float] = field(default_factory=lambda: {"A": 1.0, "B": 1.0})
    slow: tuple[str, ...] = ("B",)
    shuffled: Mapping[str, float] = field(default_factory=dict)
    absent: str | None = None
    names: tuple[str, ...] = NAMES


SCENARIOS = {
    "a": Scenario(
        "equal information, A learnt 4 times faster",
        "gain over joint training; B's encoder tells more",
    ),
    "b": Scenario(
        "B useless", "no loss against joint training", slow=(), shuffled={"A": 0.0, "B": 1.0}
    ),
    "c": Scenario(
        "labels carried by A for half of the cases, by B for the rest",
        "no loss against joint training",
        slow=(),
        shuffled={"A": 0.5, "B": 0.5},
    ),
    "d": Scenario(
        "strong A missing at test",
        "gain over joint training without A, no loss with it",
        noise={"A": 0.5, "B": 1.0},
        absent="A",
    ),
    "e": Scenario(
        "three modalities: A learnt 4 times faster than B, C useless",
        "gain over joint training; no loss by C",
        noise={"A": 1.0, "B": 1.0, "C": 1.0},
        shuffled={"C": 1.0},
        names=("A", "B", "C"),
    ),
}
# Found by bisection so that training on B alone takes 4 times the steps of training on A alone.
SLOW_SCALES: dict[tuple[str, str], float] = {
    ("classification", "sgd"): 0.22,
    ("classification", "adam"): 0.15,
    ("regression", "sgd"): 0.22,
    ("regression", "adam"): 0.155,
    ("segmentation", "sgd"): 0.06,
}
NOISE = {"classification": 1.0, "regression": 0.7, "segmentation": 1.5}


def make_data(
    task: str, scenario: Scenario, scale: float, seed: int
) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Inputs by modality, and targets, of the splits ``train``, ``valid`` and ``test``."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"train": SIZES[task], "valid": TEST[task] // 4, "test": TEST[task]}
    maps = {name: torch.randn(16, CODE, generator=generator) for name in scenario.names}
    data = {}
    for split, size in sizes.items():
        draw = _draw_images if task == "segmentation" else _draw_vectors
        latent, target = draw(task, size, generator)
        position, inputs = torch.rand(size, generator=generator), {}
        for name, apart in zip(scenario.names, _misled(scenario, position), strict=True):
            others = torch.randperm(size, generator=generator)
            shown = torch.where(apart, others, torch.arange(size))
            code = latent[shown] if task == "segmentation" else _code(latent[shown], maps[name])
            noise = scenario.noise[name] * NOISE[task]
            speed = scale if name in scenario.slow else 1.0
            inputs[name] = _observe(code, noise, speed, generator)
        data[split] = inputs, target
    return data


def shown_truly(scenario: Scenario, seed: int) -> Tensor:
    """Which modality shows a training image of ``make_data`` and no other one, bool, ``(N, M)``."""
    generator = torch.Generator().manual_seed(seed)
    for _ in scenario.names:
        torch.randn(16, CODE, generator=generator)
    _draw_images("segmentation", SIZES["segmentation"], generator)
    position = torch.rand(SIZES["segmentation"], generator=generator)
    return ~torch.stack(_misled(scenario, position), 1)


def _misled(scenario: Scenario, position: Tensor) -> list[Tensor]:
    """Samples in which each modality shows another one, by their positions in [0, 1]."""
    found, start = [], 0.0
    for name in scenario.names:
        end = start + scenario.shuffled.get(name, 0.0)
        found.append((start <= position) & (position < end))
        start = end
    return found


def _draw_vectors(task: str, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if task == "regression":
        latent = torch.randn(size, 16, generator=generator)
        latent[:, 4:] = 0
        target = torch.sin(1.5 * latent[:, 0]) + latent[:, 1] * latent[:, 2] + latent[:, 3]
        return latent, target / 1.6
    cluster = torch.randint(0, 12, (size,), generator=generator)
    return F.one_hot(cluster, 16).float() * 3, cluster % 6


def _code(latent: Tensor, weight: Tensor) -> Tensor:
    return latent @ (weight / weight.norm(dim=1, keepdim=True))


def _draw_images(task: str, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    axis = torch.arange(IMAGE, dtype=torch.float32)
    middle = 3 + 10 * torch.rand(2, 2, size, 1, 1, generator=generator)
    radius = 2 + 3 * torch.rand(2, size, 1, 1, generator=generator)
    rows, columns = axis[:, None] - middle[0], axis - middle[1]
    disk = rows[0] ** 2 + columns[0] ** 2 < radius[0] ** 2
    square = torch.maximum(rows[1].abs(), columns[1].abs()) < radius[1] * 0.8
    target = torch.where(square, 2, disk.long())
    contrast = torch.tensor([0.0, 1.5, -1.5])[target]
    return contrast[:, None], target


def _observe(code: Tensor, noise: float, scale: float, generator: torch.Generator) -> Tensor:
    observed = scale * (code + noise * torch.randn(code.shape, generator=generator))
    shape = (len(code), NUISANCE if code.ndim == 2 else 2, *code.shape[2:])
    return torch.cat([observed, torch.randn(shape, generator=generator)], 1)


def task_loss(task: str) -> nn.Module:
    return nn.MSELoss() if task == "regression" else nn.CrossEntropyLoss()


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float().mean()


def negative_mae(prediction: Tensor, target: Tensor) -> Tensor:
    return -(prediction - target).abs().mean()


def dice(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of both shapes' Dice."""
    found, kinds = prediction.argmax(1), range(1, OUTPUTS["segmentation"])
    above = [2 * ((found == k) & (target == k)).sum() for k in kinds]
    below = [(found == k).sum() + (target == k).sum() for k in kinds]
    return torch.stack(above).float(), torch.stack(below).float()


SCORES = {"classification": accuracy, "regression": negative_mae, "segmentation": dice}
