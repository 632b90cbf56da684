"""Tensors in what encoders return and optimizers keep, and the samples of a batch in them."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import contextmanager
from copy import copy
from enum import Enum
from itertools import combinations
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Features: TypeAlias = Any
"""A tensor, or a container of tensors, nested at will.

Containers are tuples, named tuples, lists, mappings, and objects that hold tensors in attributes:
dataclasses, with slots too, and outputs of other libraries such as Hugging Face's ``ModelOutput``.
"""

# Objects with attributes that are no containers of a batch's tensors.
_LEAVES: tuple[Any, ...] = (
    Tensor,
    str,
    bytes,
    Enum,
    type,
    FunctionType,
    MethodType,
    ModuleType,
    nn.Module,
)
_LEAVES += (torch.Generator, torch.device, torch.dtype)

_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets back the mode that it had."""
    with in_eval_mode(network), torch.inference_mode():
        yield


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; every module gets back the mode that it had."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:  # module by module: some may have been in evaluation mode all along
        for module in training:
            module.training = True


def map_tensors(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    """Apply a function to every tensor of a nested container, leaving other leaves alone.

    Args:
        function: Takes a tensor and returns what takes its place.
        features: Any value; a tensor may be the value itself.

    Returns:
        A container of the same types; an object's class gets its attributes without a call of its
        constructor.
    """
    return _mapped(function, features, {})


def tensors_in(features: Features) -> Iterator[Tensor]:
    """Tensors of a nested container, in its order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, features)
    yield from found


def parts_in(features: Features) -> list[Any]:
    """Values that a container holds directly, in its order; none for a tensor or another leaf."""
    return list((_parts(features) or {}).values())


def without_subclass(features: Features) -> Features:
    """Tensors without their subclass (MONAI's ``MetaTensor`` slows arithmetic); others unchanged.

    Args:
        features: A tensor or a container of tensors.
    """
    return map_tensors(_base_tensor, features)


def zeros_of(features: Features) -> Features:
    """Zeros in place of a modality's features, and no real step where masks are bool."""
    return map_tensors(torch.zeros_like, features)


def keep_samples(features: Features, kept: Tensor) -> Features:
    """Features in which some samples are zero.

    Args:
        features: Tensors whose first axis is the batch's.
        kept: Bool, shape ``(B,)``.
    """

    def keep(tensor: Tensor) -> Tensor:
        mask = kept.reshape(-1, *[1] * (tensor.ndim - 1))
        return torch.where(mask, tensor, torch.zeros_like(tensor))

    return map_tensors(keep, features)


def batch_size(value: Any) -> int:  # noqa: ANN401
    """Length of the first axis of a prediction, of its first tensor where it is a container.

    Raises:
        ValueError: If it has no tensor with an axis.
    """
    sizes = (len(tensor) for tensor in tensors_in(value) if tensor.ndim)
    size = next(sizes, None)
    if size is None:
        raise ValueError(
            f"Expected a prediction with a tensor of shape (B, ...), but got {kind_of(value)}."
        )
    return size


def take_samples(value: Any, rows: Sequence[int], size: int) -> Any:  # noqa: ANN401
    """Those samples of a batch that ``rows`` names, in that order.

    A tensor, or an array, with a first axis of the batch's length is indexed, as is a list or tuple
    with one entry per sample. What belongs to no sample, such as a 0-dimensional tensor, stays.

    Args:
        value: Features, or a target, of a batch.
        rows: Positions in the batch.
        size: Number of samples in the batch.
    """
    if isinstance(value, Tensor):
        if not value.ndim or len(value) != size:
            return value
        index = torch.tensor(rows, dtype=torch.int64)
        return value.index_select(0, index.to(value.device, non_blocking=True))
    if hasattr(value, "ndim") and hasattr(value, "shape"):  # NumPy's, and what acts like it
        return value[list(rows)] if value.ndim and len(value) == size else value
    if type(value) in (list, tuple) and _one_per_sample(value, size):
        return type(value)(value[row] for row in rows)
    parts = _parts(value)
    if parts is None or (not _is_container(value) and not any(True for _ in tensors_in(value))):
        return value
    return _rebuilt(value, {key: take_samples(part, rows, size) for key, part in parts.items()})


class Presence:
    """Which samples of a batch have which modality.

    Args:
        masks: Modality name to bool, shape ``(B,)``, true where the sample has it, of all
            modalities in the encoders' order. Masks on a GPU are waited for.

    Raises:
        ValueError: If masks are not of one length, or a sample has no modality at all.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = {name: mask.detach().cpu().bool() for name, mask in masks.items()}
        if len({tuple(mask.shape) for mask in self.masks.values()}) != 1:
            shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
            raise ValueError(f"Expected masks of one shape (B,), but got {shapes}.")
        none = (~self.matrix().any(1)).tolist()
        if any(none):
            raise ValueError(
                f"Expected every sample to have a modality, but sample {none.index(True)} of the "
                "batch has none. Leave such samples out of the batch."
            )

    def matrix(self) -> Tensor:
        """All masks, bool, ``(B, M)``, on the processor."""
        return torch.stack(list(self.masks.values()), 1)

    def rows(self, name: str) -> list[int] | None:
        """Positions of the samples that have a modality; ``None`` where all have it."""
        mask = self.masks[name]
        return None if bool(mask.all()) else mask.nonzero()[:, 0].tolist()

    def share(self, name: str) -> float:
        """Share of the samples that have a modality, in [0, 1]."""
        return float(self.masks[name].float().mean())

    def refuse(self, method: str) -> None:
        """Refuse the batch, for a method that cannot leave out a modality.

        Raises:
            ValueError: Always.
        """
        lacking = self.absent or [name for name in self.masks if self.rows(name) is not None]
        raise ValueError(
            f"Expected a batch that has all modalities, because {method} cannot leave one out, but "
            f"samples lack {lacking}. Leave such samples out of training, or choose another "
            "method, such as CGGM."
        )

    @property
    def absent(self) -> list[str]:
        """Modalities that no sample has."""
        return [name for name, mask in self.masks.items() if not bool(mask.any())]


def presence_of(
    told: Mapping[str, Tensor | bool],
    names: Sequence[str],
    prediction: Any,  # noqa: ANN401
) -> Presence | None:
    """What a caller said of a batch; ``None`` where all samples have all modalities.

    Args:
        told: Modality name to mask ``(B,)``, or to one bool for the batch; true where left out.
        names: Modalities, in order.
        prediction: The network's, whose first axis is the batch's.
    """
    if not told:
        return None
    sizes = [len(mask) for mask in told.values() if isinstance(mask, Tensor) and mask.ndim]
    size = sizes[0] if sizes else batch_size(prediction)
    masks = {}
    for name in names:
        mask = torch.as_tensor(told.get(name, True))
        masks[name] = mask if mask.ndim else mask.expand(size)
    presence = Presence(masks)
    return None if bool(presence.matrix().all()) else presence


def samples_with(
    features: Features,
    target: Any,  # noqa: ANN401
    name: str,
    presence: Presence | None,
) -> tuple[Features, Any]:
    """Features and targets of the samples that have a modality.

    Args:
        features: What its encoder returned, or a prediction made of that, for the whole batch.
        target: What predictions are compared with, for the whole batch.
        name: The modality.
        presence: Which samples have it; ``None`` for all.

    Raises:
        ValueError: If the batch is not the first axis of the features.
    """
    rows = None if presence is None else presence.rows(name)
    if presence is None or rows is None:
        return features, target
    size = len(presence.masks[name])
    check_batch_first(features, size, name)
    return take_samples(features, rows, size), take_samples(target, rows, size)


def check_batch_first(features: Features, size: int, name: str) -> None:
    """Refuse features whose samples cannot be told apart, because the batch does not come first.

    Args:
        features: What an encoder returned, or a prediction made of that.
        size: Samples in the batch.
        name: Modality.

    Raises:
        ValueError: If a tensor that a gradient reaches has another first axis.
    """
    found = {len(t) for t in tensors_in(features) if t.ndim and t.requires_grad}
    if (found or {batch_size(features)}) != {size}:
        raise ValueError(
            f"Expected the batch of {size} samples as the first axis of what encoder {name!r} "
            f"returns, to leave out those without {name!r}, but got {kind_of(features)}. "
            "Return the batch first, or feed batches of samples that have all modalities."
        )


def check_moments(optimizer: Optimizer) -> None:
    """Check the restored state of an optimizer, which takes moments of any form without a word.

    Args:
        optimizer: One of torch's own; others may keep moments of another form on purpose, and are
            left alone.

    Raises:
        ValueError: If a moment has another form than its parameter.
    """
    if not type(optimizer).__module__.startswith("torch."):
        return
    for parameter, state in optimizer.state.items():
        for name in _MOMENTS if isinstance(state, Mapping) else ():  # other ranks' states are None
            shape = getattr(state.get(name), "shape", None)
            if state.get(name) is not None and shape != parameter.shape:
                found = type(state[name]).__name__ if shape is None else tuple(shape)
                raise ValueError(f"{name} is {found} for a parameter {tuple(parameter.shape)}")


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets of modalities by size without the empty one, so that all of them come last.

    Args:
        names: The modalities; subsets keep their order.

    Example:
        >>> subsets_of(["a", "v"])
        [('a',), ('v',), ('a', 'v')]
    """
    sizes = range(1, len(names) + 1)
    return [subset for size in sizes for subset in combinations(names, size)]


def kind_of(value: Any) -> str:  # noqa: ANN401
    """A value's type, and its shape where it is a tensor, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _base_tensor(tensor: Tensor) -> Tensor:
    if type(tensor) in (Tensor, nn.Parameter) or is_traceable_wrapper_subclass(tensor):
        return tensor  # a wrapper, such as a nested or a distributed tensor, is empty without it
    return tensor.as_subclass(Tensor)


def _mapped(function: Callable[[Tensor], Tensor], value: Any, done: dict[int, Any]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return function(value)
    parts = _parts(value)
    if parts is None:
        return value
    if id(value) in done:  # an object may refer to one that holds it
        return done[id(value)]
    if not _is_container(value):
        done[id(value)] = value
    mapped = {key: _mapped(function, part, done) for key, part in parts.items()}
    if not _is_container(value) and all(mapped[key] is part for key, part in parts.items()):
        return value
    return _rebuilt(value, mapped)


def _is_container(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Mapping | tuple | MutableSequence)


def _one_per_sample(values: Sequence[Any], size: int) -> bool:
    """Whether a list or tuple holds one entry per sample, and not tensors of the whole batch."""
    if len(values) != size:
        return False
    lengths = {len(v) for v in values if isinstance(v, Tensor) and v.ndim}
    whole = bool(lengths) and lengths == {size}
    return isinstance(values, list) or not whole


def _parts(value: Any) -> dict[Any, Any] | None:  # noqa: ANN401
    """What a container holds, by place: ``(True, key)`` of an item, ``(False, name)`` else."""
    if value is None or isinstance(value, _LEAVES):
        return None
    if isinstance(value, Mapping):
        items = {(True, key): part for key, part in value.items()}
    elif isinstance(value, tuple | MutableSequence):
        items = {(True, index): part for index, part in enumerate(value)}
    else:
        return _attributes(value) or None
    if type(value) in (dict, list, tuple) or hasattr(value, "_fields"):
        return items
    # a class of its own may hold tensors beside its items, or the same ones as attributes
    held = {id(part) for part in items.values()}
    return items | {k: v for k, v in _attributes(value).items() if id(v) not in held}


def _attributes(value: Any) -> dict[Any, Any]:  # noqa: ANN401
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        own = [slots] if isinstance(slots, str) else slots
        names += [f"_{kind.__name__.lstrip('_')}{n}" if _is_private(n) else n for n in own]
    return {(False, n): getattr(value, n) for n in names if n[:2] != "__" and hasattr(value, n)}


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _rebuilt(value: Any, parts: Mapping[Any, Any]) -> Any:  # noqa: ANN401
    """A container of the same type that holds other parts."""
    items = {key: part for (item, key), part in parts.items() if item}
    if type(value) is dict:
        return items
    if type(value) is list:
        return list(items.values())
    if isinstance(value, tuple):
        result = _tuple_of(type(value), list(items.values()))
    elif isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return items
    else:
        result = _copied(value)
        for key, part in items.items():
            result[key] = part
    for (item, name), part in parts.items():
        if not item:
            object.__setattr__(result, name, part)  # frozen dataclasses, too
    return result


def _copied(value: Any) -> Any:  # noqa: ANN401
    try:
        return copy(value)
    except (AttributeError, TypeError):  # a class that lets nobody set its attributes
        result = object.__new__(type(value))
        for (_, name), part in _attributes(value).items():
            object.__setattr__(result, name, part)
        return result


def _tuple_of(kind: type[tuple[Any, ...]], items: list[Any]) -> Any:  # noqa: ANN401
    if hasattr(kind, "_make"):
        return kind._make(items)
    if kind.__new__ is tuple.__new__:
        return kind(items)
    try:
        return tuple.__new__(kind, items)  # a constructor of its own may take other arguments
    except TypeError:  # a type of C, such as what torch.max returns
        return kind(items)
