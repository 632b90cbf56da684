"""Which modules can be bound, and the user's own module inside wrappers."""

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cggm.late_fusion import LateFusion

Named = float | Mapping[str, float]


def check_factors(argument: str, values: Named) -> None:
    """Refuse factors that are negative or not finite.

    Args:
        argument: What the factors are called in the message.
        values: One number, or one per modality.

    Raises:
        ValueError: If a factor cannot serve.
    """
    for value in values.values() if isinstance(values, Mapping) else [values]:
        if not isfinite(value) or value < 0:
            raise ValueError(f"Expected `{argument}` finite and not negative, but got {value}.")


def check_names(argument: str, names: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse names other than those of the encoders.

    Args:
        argument: What bears the names, for the message.
        names: Names given, in any order.
        expected: Names of the encoders.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    if sorted(names) != sorted(expected):
        raise ValueError(
            f"Expected `{argument}` for the modalities {list(expected)}, but got {list(names)}. "
            "Name every encoder once."
        )


def per_modality(argument: str, values: Named, names: Sequence[str]) -> Tensor:
    """Put numbers into the order of the encoders.

    Args:
        argument: What the numbers are called in the message.
        values: One number, or one per modality.
        names: Names of the encoders, in order.

    Returns:
        Shape ``(M,)``, float32.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    if not isinstance(values, Mapping):
        return torch.full((len(names),), float(values))
    check_names(argument, list(values), names)
    return torch.tensor([float(values[name]) for name in names])


_LAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_weight(layer: nn.Module) -> Tensor:
    """Weight of a linear or convolutional layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def unwrap(network: nn.Module) -> nn.Module:
    """The user's own module inside DDP and ``torch.compile`` wrappers.

    Raises:
        ValueError: If the wrapper replicates or shards modules, so that hooks would be lost.
    """
    while True:
        if isinstance(network, DataParallel):
            raise ValueError(
                "Expected one network per process, but got DataParallel, which runs replicas "
                "without their hooks. Use DistributedDataParallel."
            )
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, DistributedDataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def check_encoders(encoders: Mapping[str, nn.Module], output_layer: nn.Module) -> None:
    """Refuse encoders that cannot be scaled one by one.

    Raises:
        ValueError: If there is none, or one without trainable parameters, or a shared parameter.
    """
    if not encoders:
        raise ValueError("Expected at least one encoder, but got none. Name them by modality.")
    owner: dict[int, str] = {}
    for name, module in {**encoders, "the output layer": output_layer}.items():
        trainable = [p for p in module.parameters() if p.requires_grad]
        if not trainable and module is not output_layer:
            raise ValueError(
                f"Expected encoder {name!r} to have trainable parameters, but it has none. "
                "Unfreeze it, or leave it out of the encoders."
            )
        for parameter in module.parameters():
            if id(parameter) in owner:
                raise ValueError(
                    f"Expected encoders to share no parameter, but one of shape "
                    f"{tuple(parameter.shape)} belongs to {owner[id(parameter)]!r} and {name!r}. "
                    "Give each its own, or move what is shared out of the encoders."
                )
        owner |= {id(parameter): name for parameter in module.parameters()}


def check_output_layer(layer: nn.Module, names: list[str]) -> None:
    """Refuse a last layer that is neither linear, nor a 1x1 convolution, nor a late fusion.

    Args:
        layer: The output layer.
        names: Modalities, in order.

    Raises:
        ValueError: If it cannot serve.
    """
    if isinstance(layer, LateFusion):
        if list(layer) != names:
            raise ValueError(
                f"Expected a late fusion of the encoders {names}, but got one of {list(layer)}. "
                "Name its heads like the encoders, in their order."
            )
        return
    weight = getattr(layer, "weight", None)
    remedy = "Give the last layer with parameters; interpolation and softmax may follow it."
    if not isinstance(layer, _LAST_LAYERS) or not isinstance(weight, Tensor):
        raise ValueError(
            "Expected `output_layer` to be a linear or convolutional layer, "
            f"but got {type(layer).__name__}. {remedy}"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"Expected an initialized `output_layer`, but got {layer}. Run it once.")
    if isinstance(layer, nn.Linear):
        return
    if weight[0, 0].numel() != 1 or layer.groups != 1 or set(layer.stride) != {1}:
        raise ValueError(
            f"Expected a convolutional `output_layer` of kernel 1, stride 1 and one group, "
            f"but got {layer}. {remedy}"
        )
