"""Frozen teachers of encoders, and the distance of features to theirs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm.tensors import Features, parts_in, without_subclass
from cggm.trials import unhooked_copy


def frozen(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies in eval mode whose parameters do not learn, without hooks.

    Args:
        modules: By modality.
    """
    return {
        name: unhooked_copy(module).requires_grad_(False).eval() for name, module in modules.items()
    }


def feature_distance(student: Features, teacher: Features) -> Tensor:
    """Mean squared difference of features, the mean over their tensors of floats.

    A bool tensor beside values in the same container, whose shape is the values' leading axes, says
    which of them count.

    Args:
        student: What an encoder returned.
        teacher: What its teacher did, of the same structure.
    """
    return torch.stack(_distances(student, teacher)).mean()


def _distances(student: Features, teacher: Features, mask: Tensor | None = None) -> list[Tensor]:
    """Mean squared difference of each floating tensor, in float32."""
    if isinstance(student, Tensor):
        if not student.is_floating_point():
            return []
        return [_mean_square(student.float() - without_subclass(teacher).float(), mask)]
    parts = parts_in(student)
    masks = [part for part in parts if getattr(part, "dtype", None) == torch.bool]
    return [
        distance
        for own, taught in zip(parts, parts_in(teacher), strict=True)
        for distance in _distances(own, taught, _mask_of(own, masks))
    ]


def _mask_of(values: Features, masks: list[Tensor]) -> Tensor | None:
    if not isinstance(values, Tensor):
        return None
    return next((m for m in masks if m.shape == values.shape[: m.ndim]), None)


def _mean_square(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.square().mean()
    mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)).expand_as(values)
    return torch.where(mask, values, 0.0).square().sum() / mask.sum().clamp_min(1)
