"""Checkpoints that are complete, verified and safe to read, or refused with a reason.

One checkpoint is a folder ``epoch-0007`` with ``model.safetensors`` (the network alone, for
inference), ``training.pt`` (everything else, no code in it) and ``checkpoint.json`` (how far the
run was, and a digest of each file). It appears in one step, once its content is on the disk.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from cggm.bindable import unwrap
from cggm.errors import UserError
from cggm.runs.folder import flush_folder, replacing, write_atomically
from cggm.runs.seeds import rng_state, set_rng_state

_MODEL, _TRAINING, _HEADER = "model.safetensors", "training.pt", "checkpoint.json"


class Stateful(Protocol):
    """Anything with a state: optimizers, schedulers, scalers, balancers."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state over."""


@dataclass(frozen=True)
class Progress:
    """How far a run was.

    Args:
        epoch: Completed epochs.
        iteration: Completed optimizer steps.
        score: Validation score, higher is better; ``None`` where nothing was validated.
        fingerprint: What must be the same on resume, such as ``{"data": digest}``.
    """

    epoch: int
    iteration: int
    score: float | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    parts: Mapping[str, Stateful | None],
    progress: Progress,
    *,
    keep_last: int = 2,
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

    Returns:
        Folder of the new checkpoint.
    """
    target = folder / f"epoch-{progress.epoch:04d}"
    draft = target.with_name(f".draft-{target.name}")
    for leftover in folder.glob(".*-epoch-*"):
        shutil.rmtree(leftover)
    draft.mkdir(parents=True)
    try:
        _write_parts(draft, network, parts, progress)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if target.exists():
        _discard(target)
    draft.rename(target)
    flush_folder(folder)
    _prune(folder, keep_last)
    return target


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    parts: Mapping[str, Stateful | None],
    fingerprint: Mapping[str, str] | None = None,
) -> Progress:
    """Continue from the last checkpoint: network, parts and random generators.

    Args:
        folder: Folder of the checkpoints.
        network: A network built like the saved one.
        parts: The same names as were saved.
        fingerprint: What must equal the saved fingerprint.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or belongs to another run.
    """
    path = _checkpoints(folder)[-1]
    header = _read_header(path)
    module = unwrap(network)
    weights = _read_weights(path, header, module)
    training = torch.load(_verified(path, _TRAINING, header), "cpu", weights_only=True)
    progress = Progress(**header["progress"])
    given = {name: part for name, part in parts.items() if part is not None}
    odd_parts = training["parts"].keys() ^ given.keys()
    _check_same_run(path, progress.fingerprint, fingerprint or {}, odd_parts)
    module.load_state_dict(weights)
    for name, part in given.items():
        _load_part(path, name, part, training["parts"][name])
    set_rng_state(training["rng"])
    return progress


def load_network_weights(
    folder: Path, network: nn.Module, parts: Mapping[str, Stateful] | None = None
) -> Progress:
    """Load the network of the checkpoint with the highest score, or the last one without scores.

    Args:
        folder: Folder of the checkpoints.
        network: A network built like the saved one.
        parts: What else of the same checkpoint to take over, by name; inference needs nothing.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or holds another network.
    """
    headers = {path: _read_header(path) for path in _checkpoints(folder)}
    path = max(headers, key=lambda p: _rank(headers[p]["progress"]))
    module = unwrap(network)
    module.load_state_dict(_read_weights(path, headers[path], module))
    if parts:
        training = torch.load(_verified(path, _TRAINING, headers[path]), "cpu", weights_only=True)
        for name, part in parts.items():
            _load_part(path, name, part, training["parts"][name])
    return Progress(**headers[path]["progress"])


def _write_parts(
    draft: Path, network: nn.Module, parts: Mapping[str, Stateful | None], progress: Progress
) -> None:
    state = unwrap(network).state_dict()
    # safetensors refuses tensors that share memory, as tied weights do.
    weights = {key: value.to("cpu", copy=True).contiguous() for key, value in state.items()}
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    training = {"parts": states, "rng": rng_state()}
    files = {
        _MODEL: _write(draft / _MODEL, lambda file: file.write(save_safetensors(weights))),
        _TRAINING: _write(draft / _TRAINING, lambda file: torch.save(training, file)),
    }
    write_atomically(draft / _HEADER, _sealed({"progress": asdict(progress), "files": files}))


def _write(path: Path, dump: Callable[[BinaryIO], object]) -> str:
    """Write a file durably and return its digest."""
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                dump(file)
        except RuntimeError as error:
            # torch.save hides why a write failed, such as a full disk, in the context.
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else error from None
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(header: Mapping[str, Any]) -> bytes:
    """The header as JSON with its own digest."""
    digest = hashlib.sha256(json.dumps(header).encode()).hexdigest()
    return json.dumps({**header, "digest": digest}, indent=2).encode()


def _checkpoints(folder: Path) -> list[Path]:
    """Folders of the checkpoints, oldest first; at least one."""
    found = [path for path in folder.glob("epoch-*") if path.name[6:].isdigit()]
    if not found:
        raise UserError(f"{folder}: there is no checkpoint.", "Train first, or give another run.")
    return sorted(found, key=lambda path: int(path.name[6:]))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        content = (path / _HEADER).read_bytes()
        header: dict[str, Any] = json.loads(content)
        del header["digest"]
        if content == _sealed(header):
            return header
    except FileNotFoundError:
        raise _damaged(path, _HEADER, "it is missing") from None
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    raise _damaged(path, _HEADER, "it is cut short or altered")


def _verified(path: Path, name: str, header: Mapping[str, Any]) -> Path:
    if not (path / name).is_file():
        raise _damaged(path, name, "it is missing")
    if _digest(path / name) != header["files"][name]:
        raise _damaged(path, name, "it is cut short or altered")
    return path / name


def _damaged(path: Path, name: str, why: str) -> UserError:
    others = [other.name for other in _checkpoints(path.parent) if other != path]
    remedy = f"the run then continues from {others[-1]}" if others else "then train anew"
    return UserError(f"{path / name}: damaged checkpoint, {why}.", f"Delete {path}; {remedy}.")


def _read_weights(path: Path, header: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    file = _verified(path, _MODEL, header)
    saved = load_safetensors(file.read_bytes())
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


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"


def _check_same_run(
    path: Path, saved: Mapping[str, str], given: Mapping[str, str], odd_parts: Set[str]
) -> None:
    differing = [name for name in given if given[name] != saved.get(name)]
    for what in (differing, sorted(odd_parts)):
        if what:
            raise UserError(
                f"{path}: the run was made with a different {', '.join(what)}.",
                "Resume with the data and configuration of that run, or start a new one.",
            )


def _load_part(path: Path, name: str, part: Stateful, state: dict[str, Any]) -> None:
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: the saved {name} does not fit this run ({error}).",
            "Resume with the configuration of that run, or start a new one.",
        ) from error


def _rank(progress: Mapping[str, Any]) -> tuple[float, int]:
    """Order by score, then by age; without a score last."""
    score = progress["score"]
    return (-math.inf if score is None or math.isnan(score) else score, progress["epoch"])


def _prune(folder: Path, keep_last: int) -> None:
    paths, ranks = _checkpoints(folder), {}
    for path in paths:
        with suppress(UserError):
            ranks[path] = _rank(_read_header(path)["progress"])
    for path in {*paths} - {*paths[-keep_last:], max(ranks, key=lambda path: ranks[path])}:
        _discard(path)


def _discard(path: Path) -> None:
    """Remove a checkpoint so that none is ever seen in part."""
    trash = path.rename(path.with_name(f".old-{path.name}"))
    shutil.rmtree(trash)
