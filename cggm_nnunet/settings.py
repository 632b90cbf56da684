"""Settings of a balanced nnU-Net training, from a YAML file that lies beside the plans."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cggm.errors import UserError
from cggm.runs import read_config, require

VARIABLE = "CGGM_NNUNET"
"""Variable of the environment that names another file of settings."""

FILE = "cggm.yaml"
"""The file of settings beside the plans, in ``nnUNet_preprocessed/DATASET``."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What a balanced training is told beside its plans.

    Args:
        settings: Keyword arguments of the trainer's balancing method.
        width: Factor on the widths of the encoders; 1 keeps to the memory of the plan.
        head_lr: Learning rate of the heads, which Adam trains.
        record_every: Iterations between lines of balance.jsonl.
        epochs: Epochs to train; nnU-Net's 1000 if null.
        iterations: Optimizer steps in an epoch; nnU-Net's 250 if null.
        validation_iterations: Batches of nnU-Net's quick validation, its 50 if null.
        save_every: Epochs between checkpoints; nnU-Net's 50 if null.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0
    head_lr: float = 5e-4
    record_every: int = 1
    epochs: int | None = None
    iterations: int | None = None
    validation_iterations: int | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        require(self.width > 0, "width", "positive", self.width)
        require(self.head_lr > 0, "head_lr", "positive", self.head_lr)
        for name in ("record_every", "epochs", "iterations", "validation_iterations", "save_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "of at least 1", value)


def read_settings(folder: Path | None, defaults: Mapping[str, Any]) -> TrainerSettings:
    """Settings of a training: of the file that the environment names, else of the one by the plans.

    Args:
        folder: Where the plans lie, ``None`` where that is not known.
        defaults: Of the method, which the file's own settings take precedence over, one by one.

    Raises:
        UserError: If the named file does not exist, or a file holds an unknown key or a wrong type.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_file():
        raise UserError(
            f"Expected {VARIABLE} to name a YAML file, but there is no {named}.",
            "Correct the variable, or unset it.",
        )
    file = Path(named) if named else (folder or Path()) / FILE
    given = read_config(TrainerSettings, [file] if named or (folder and file.is_file()) else [])
    return replace(given, settings=_merged(defaults, given.settings))


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Modalities of a data set in the order of its channels, usable as names of modules.

    nnU-Net chooses a channel's normalization by its name, so that two phases of a CT are both
    called CT: names that occur several times get their channel's number.

    Args:
        dataset: Content of ``dataset.json``.
    """
    channels = dataset.get("channel_names") or dataset["modality"]
    names = [channels[number].replace(".", "_") for number in sorted(channels, key=int)]
    return [n if names.count(n) == 1 else f"{n}_{number}" for number, n in enumerate(names)]


def trainers_folder() -> Path:
    """The folder that ``nnUNet_extTrainer`` has to name, so that nnU-Net finds the trainers."""
    return Path(__file__).parent / "trainers"


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Given settings over defaults, also within the settings of one method of a chain."""
    merged = {**defaults, **given}
    for name, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(given.get(name), Mapping):
            merged[name] = {**value, **given[name]}
    return merged
