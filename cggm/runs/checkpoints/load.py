"""Reading of checkpoints: complete, verified and safe to read, or refused with a reason."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from cggm.contract import unwrap
from cggm.distributed import is_first_rank, world_size
from cggm.errors import UserError
from cggm.runs.checkpoints.files import (
    damaged,
    find_checkpoints,
    read_header,
    selection_order,
    verified,
)
from cggm.runs.checkpoints.save import MODEL, RULES, TRAINING, RunProgress, Stateful, made_by
from cggm.runs.loop import set_rng_state
from cggm.tensors import check_moments

_OPTIONAL = ("content of the samples",)  # which a session of one's own may name from some day on

# What is raised by those who are given a state of another form, as a file from anywhere may have.
_MISFITS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    parts: Mapping[str, Stateful | None],
    fingerprint: Mapping[str, str] | None = None,
) -> RunProgress:
    """Continue from the last checkpoint: network, parts and random generators.

    A line on standard error says so where other versions, another processor or another number of
    threads wrote it, as the bits may then differ.

    Args:
        folder: Folder of the checkpoints.
        network: A network built like the saved one.
        parts: The same names as were saved.
        fingerprint: What must equal the saved fingerprint.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or belongs to another run.
    """
    path = _some_checkpoints(folder)[-1]
    header = read_header(path)
    module = unwrap(network)
    weights = _read_weights(path, header, module)
    training = _read_training(path, header)
    progress = RunProgress(**header["progress"])
    given = {name: part for name, part in parts.items() if part is not None}
    saved, wanted = progress.fingerprint, fingerprint or {}
    _check_rules(path, header["versions"])
    known = [name for name in wanted if name in saved or name not in _OPTIONAL]
    _refuse(path, [name for name in known if wanted[name] != saved.get(name)])
    _refuse(path, sorted(training["parts"].keys() ^ given.keys()))
    _refuse(path, [] if header["world_size"] == world_size() else ["number of processes"])
    module.load_state_dict(weights)
    for name, part in given.items():
        _load_part(path, name, part, training["parts"][name])
    try:
        set_rng_state(training["rng"])
    except _MISFITS as error:
        raise damaged(path, TRAINING, "it holds no states of random generators") from error
    _note_differences(path, header["versions"])
    return replace(progress, fingerprint=wanted)


def load_network_weights(
    folder: Path, network: nn.Module, parts: Mapping[str, Stateful] | None = None
) -> RunProgress:
    """Load the network of the checkpoint with the highest score, or the last one without scores.

    Args:
        folder: Folder of the checkpoints.
        network: A network built like the saved one.
        parts: What else of the same checkpoint to take over, by name; inference needs nothing.

    Raises:
        UserError: If there is no checkpoint, or it is damaged, holds another network or weights
            that are not finite.
    """
    headers = {path: read_header(path) for path in _some_checkpoints(folder)}
    path = max(headers, key=lambda p: selection_order(headers[p]["progress"]))
    module = unwrap(network)
    weights = _read_weights(path, headers[path], module)
    _check_finite(path, weights)
    module.load_state_dict(weights)
    training = _read_training(path, headers[path]) if parts else {}
    for name, part in (parts or {}).items():
        _load_part(path, name, part, training["parts"][name])
    return RunProgress(**headers[path]["progress"])


def _some_checkpoints(folder: Path) -> list[Path]:
    found = find_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: there is no checkpoint.", "Train first, or give another run.")
    return found


def _read_weights(path: Path, header: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    file = verified(path, MODEL, header)
    try:
        saved = load_safetensors(file.read_bytes())
    except SafetensorError as error:
        raise damaged(path, MODEL, "it holds no weights") from error
    state = network.state_dict()
    differing = [
        f"{key} is {_shape(saved, key)} in the file and {_shape(state, key)} in the network"
        for key in [*state, *sorted(set(saved) - set(state))]
        if _shape(saved, key) != _shape(state, key)
    ]
    if differing:
        raise UserError(
            f"{file}: weights of another network: {'; '.join(differing[:3])} "
            f"({len(differing)} differ).",
            f"Build the network from {path.parent.parent / 'config.yaml'}, or give another run.",
        )
    return saved


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which every prediction would be empty or noise."""
    bad = [key for key, value in weights.items() if not bool(value.isfinite().all())]
    if bad:
        raise UserError(
            f"{path}: weights are not finite, NaN or infinite, in {bad[0]} and {len(bad)} tensors "
            "in all.",
            "Delete this checkpoint, so that an earlier one is used, or train anew.",
        )


def _read_training(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    file = verified(path, TRAINING, header)
    try:
        training: dict[str, Any] = torch.load(file, "cpu", weights_only=True)
        if not {"parts", "rng"} <= training.keys() or not isinstance(training["parts"], dict):
            raise ValueError
    except (UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        # whoever replaces the file can replace its digest, but code in it is never run
        raise damaged(path, TRAINING, "it holds more than numbers, or is no such file") from error
    return training


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"


def _refuse(path: Path, differing: list[str]) -> None:
    if differing:
        raise UserError(
            f"{path}: the run differs in its {' and '.join(differing)}.",
            "Resume as that run was started, or start a new one.",
        )


def _check_rules(path: Path, versions: Mapping[str, str]) -> None:
    """Refuse a training of a version in which the same configuration computed other steps."""
    if versions.get("rules", "1") != RULES:
        config = path.parent.parent / "config.yaml"
        raise UserError(
            f"{path}: the run was begun by a version of cggm ({versions.get('cggm', 'unknown')}, "
            f"rules {versions.get('rules', '1')}; this one has {RULES}) in which the same options "
            "meant other steps: split, loss or method.",
            "Go on with that version, or start a new run and compare the options with those of "
            f"{config}. Prediction, evaluation and report take the run as it is.",
        )


def _load_part(path: Path, name: str, part: Stateful, state: dict[str, Any]) -> None:
    try:
        part.load_state_dict(state)
        if isinstance(part, torch.optim.Optimizer):
            check_moments(part)
    except _MISFITS as error:
        raise UserError(
            f"{path}: the saved {name} does not fit this run ({error}).",
            "Resume with the configuration of that run, or start a new one.",
        ) from error


def _note_differences(path: Path, saved: Mapping[str, str]) -> None:
    """Say what the bits depend on and is another one now."""
    now = made_by()
    others = [f"{n} {v}, now {now.get(n)}" for n, v in saved.items() if v != now.get(n)]
    if others and is_first_rank():
        print(
            f"{path} was written by {'; '.join(others)}: numbers may differ from here on.",
            file=sys.stderr,
            flush=True,
        )
