"""What a prediction depends on besides its images, in a form that can be compared."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version

import torch
from torch import nn

from cggm_seg.slicewise import InferenceSettings, device_of


def made_with(network: nn.Module, settings: InferenceSettings) -> dict[str, str]:
    """The network, the settings and the version of this package.

    The batch size and the device are no part of it: they change rounding alone. The precision that
    the device computes in is.
    """
    values = {
        "version": version("cggm"),
        "network": network_digest(network),
        "mode": settings.mode,
        "flips": str(settings.flips),
        "crop_to_brain": str(settings.crop_to_brain),
        "precision": "bf16" if settings.in_bf16(device_of(network)) else "float32",
    }
    if settings.mode == "window":
        values |= {"window": str(settings.window), "overlap": str(settings.overlap)}
    return values


def network_digest(network: nn.Module) -> str:
    """SHA-256 of the weights, and of the structure: modules with their strings and numbers."""
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        digest.update(repr((name, type(module).__qualname__, _plain(vars(module)))).encode())
    for name, tensor in network.state_dict().items():
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(values: Mapping[str, object]) -> list[tuple[str, object]]:
    kept = {k: v for k, v in values.items() if isinstance(v, str | int | float | tuple)}
    return sorted((k, v) for k, v in kept.items() if k != "training")
