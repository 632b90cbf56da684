"""Writing of checkpoints: complete folders, each with digests of what it holds.

One checkpoint is a folder with ``model.safetensors`` (the network alone, for inference),
``training.pt`` (everything else, no code in it) and ``checkpoint.json`` (how far the run was, what
wrote it, and a digest of each file).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from cggm import __version__
from cggm.contract import unwrap
from cggm.distributed import world_size
from cggm.runs.checkpoints.files import folder_name, prune, publish
from cggm.runs.environment import processor
from cggm.runs.loop import rng_state

MODEL, TRAINING = "model.safetensors", "training.pt"
RULES = "2"
"""Version of what a step computes by a configuration, to be raised by hand with each default or
rule of a method that changes: a training begun by another version cannot go on."""


class Stateful(Protocol):
    """Anything with a state: optimizers, schedulers, scalers, balancers."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state over."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run was.

    Args:
        epoch: Completed epochs, validation included.
        iteration: Completed iterations.
        score: Validation score, higher is better; ``None`` where nothing was validated.
        fingerprint: What must be the same on resume, such as ``{"data": digest}``.
    """

    epoch: int
    iteration: int
    score: float | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    network: nn.Module | Stateful,
    parts: Mapping[str, Stateful | None],
    progress: RunProgress,
    *,
    keep_last: int = 2,
    rng: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, then remove those that are neither recent nor the best.

    The state of all random generators of this process is kept too. In a distributed run, call it
    on one rank.

    Args:
        folder: Folder of the checkpoints.
        network: The network, possibly wrapped for DDP or compiled as a whole; heads are no part.
        parts: Everything else with a state, by name; ``None`` where a run does without.
        progress: How far the run is.
        keep_last: Number of recent checkpoints to keep, besides the one of the highest score.
        rng: State of the random generators; that of now where not given.

    Returns:
        Folder of the new checkpoint.

    Raises:
        FileExistsError: If this progress was saved before.
    """
    own = unwrap(network) if isinstance(network, nn.Module) else network
    state = own.state_dict()
    # safetensors refuses tensors that share memory, as tied weights do.
    weights = {key: value.to("cpu", copy=True).contiguous() for key, value in state.items()}
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    training = {"parts": states, "rng": rng_state() if rng is None else rng}
    target = folder / folder_name(progress.epoch, progress.iteration)
    publish(
        target,
        {
            MODEL: lambda file: file.write(save_safetensors(weights)),
            TRAINING: lambda file: torch.save(training, file),
        },
        {"versions": made_by(), "world_size": world_size(), "progress": asdict(progress)},
    )
    prune(folder, keep_last)
    return target


def made_by() -> dict[str, str]:
    """What the bits of a training depend on besides its configuration and data."""
    return {
        "cggm": __version__,
        "rules": RULES,
        "torch": version("torch"),
        "threads": str(torch.get_num_threads()),
        "processor": processor(),
    }
