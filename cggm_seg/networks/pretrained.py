"""Weights for an encoder, from the files in which people keep them."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cggm.errors import UserError

State = Mapping[str, Tensor]


def load_pretrained(encoder: nn.Module, file: Path) -> None:
    """Load weights into an encoder; all of its tensors must be in the file, others may be.

    The file is a state dict, or holds one, as Lightning's checkpoints do under ``state_dict``; its
    names may have a prefix, such as ``module.`` or ``model.encoder.``. Weights of an RGB first
    convolution are summed over the colors, which suits one gray channel.

    Args:
        encoder: Gets the weights.
        file: ``.safetensors``, or tensors saved by torch.

    Raises:
        UserError: If the file cannot be read, holds no weights of such an encoder, or those of
            several.
    """
    own = encoder.state_dict()
    found: dict[str, State] = {}
    for place, state in _states(_content(file)):
        found |= {f"{place}{prefix}*": part for prefix, part in _parts(state, own)}
    fitting = {name: part for name, part in found.items() if part.keys() == own.keys()}
    if len(fitting) != 1:
        raise UserError(f"{file}: {_problem(found, fitting, own)}.", _FIX)
    (state,) = fitting.values()
    encoder.load_state_dict({key: _as_gray(state[key], own[key]) for key in own})


_FIX = "Give the state dict of the same smp encoder, as .safetensors or .pt."


def _content(file: Path) -> Any:  # noqa: ANN401
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{file}: the encoder weights cannot be read: {error.strerror or 'not found'}.",
            "Check --network.encoder_weights.",
        ) from error
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        # Code in a file of somebody else is never run, so that what needs some is not read.
        raise UserError(
            f"{file}: expected encoder weights, but it holds more than tensors, or is damaged.",
            "Where you trust it, take the state dict out of it and save that alone, as "
            ".safetensors or .pt.",
        ) from error


def _states(content: object, place: str = "") -> list[tuple[str, State]]:
    """The state dicts in a file and where they are: itself, and those in its values."""
    if not isinstance(content, Mapping):
        return []
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    inner = [s for key, value in content.items() for s in _states(value, f"{place}{key}/")]
    return [*([(place, tensors)] if tensors else []), *inner]


def _parts(state: State, own: State) -> list[tuple[str, State]]:
    """Tensors under each prefix that some name of the encoder has, without it."""
    anchor = next(iter(own))  # the first convolution, which no other layer's name ends with
    prefixes = [name.removesuffix(anchor) for name in state if _ends_with(name, anchor)]
    return [
        (prefix, {k: state[prefix + k] for k in own if _fits(state.get(prefix + k), own[k])})
        for prefix in prefixes
    ]


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _fits(value: Tensor | None, own: Tensor) -> bool:
    return value is not None and (value.shape == own.shape or _is_rgb(value, own))


def _is_rgb(value: Tensor, own: Tensor) -> bool:
    return value.shape[1:2] == (3,) and value.sum(1, keepdim=True).shape == own.shape


def _as_gray(value: Tensor, own: Tensor) -> Tensor:
    return value if value.shape == own.shape else value.sum(1, keepdim=True)


def _problem(found: Mapping[str, State], fitting: Mapping[str, State], own: State) -> str:
    if fitting:
        names = ", ".join(sorted(fitting))
        return f"expected the weights of one encoder, but it holds those of several: {names}"
    best = max(found.values(), key=len, default={})
    missing = next(key for key in own if key not in best)
    return (
        f"expected {len(own)} tensors of this encoder, but {len(own) - len(best)} are absent or of "
        f"another shape, the first of them {missing} {tuple(own[missing].shape)}"
    )
