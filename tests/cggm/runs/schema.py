"""A training configuration of realistic size, imported by the tests and the scripts they run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cggm.runs.options import RunConfig


@dataclass(frozen=True)
class Data:
    """Slices and crops.

    Args:
        cache: Folder of the cache.
        crop: Height and width of a crop, in pixels.
        workers: Processes that load slices.
        fold: Held-out fifth.
        modalities: Names, in order.
    """

    cache: Path | None = None
    crop: tuple[int, int] = (160, 160)
    workers: int = 4
    fold: Literal[0, 1, 2, 3, 4] = 0
    modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2")


@dataclass(frozen=True)
class Training:
    """How to train.

    Args:
        lr: Learning rate.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        batch_size: Slices per step.
        accumulate: Micro-batches per step.
        warmup: Epochs of rising learning rate.
        amp: Whether to compute in bfloat16.
        clip: Largest gradient norm.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-4
    batch_size: int = 64
    accumulate: int = 1
    warmup: int = 10
    amp: bool = False
    clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A training.

    Args:
        balancer: Name of the method.
        arguments: Arguments of the method.
    """

    balancer: str = "joint"
    arguments: dict[str, int | float | bool | str | None] = field(default_factory=dict)
    data_options: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """Prediction.

    Args:
        model: Run folder.
        overlap: Overlap of the windows.
    """

    model: Path
    overlap: float = 0.25
