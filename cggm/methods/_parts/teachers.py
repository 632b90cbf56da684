"""Frozen teachers of encoders: their training, and the distance of features to theirs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm.distributed import broadcast_from_first
from cggm.tensors import Features, parts_in, without_subclass
from cggm.trials import Trials, unhooked_copy


def frozen(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies in eval mode whose parameters do not learn, without hooks.

    Args:
        modules: By modality.
    """
    return {
        name: unhooked_copy(module).requires_grad_(False).eval() for name, module in modules.items()
    }


def train_teachers(
    trials: Trials,
    teachers: Mapping[str, nn.Module],
    judges: Mapping[str, nn.Module],
    epochs: int | None,
) -> None:
    """Train frozen teachers and their heads in place, each on its modality alone.

    They begin as the network's encoders are now, with the optimizer and the schedule of a training
    of as many epochs, and are the same on all ranks.

    Args:
        trials: Trains them.
        teachers: By modality, of the classes of the network's encoders.
        judges: Head of each, which takes what the encoder returns.
        epochs: Epochs that they are trained for; as many as the network where not given.
    """
    trial = trials.copy(judges)
    trial.heads.requires_grad_(True)
    weights = torch.ones(len(judges) + 1)
    weights[-1] = 0
    trial.fit(weights, epochs or trials.course.epochs, scheduled=True)
    for name, teacher in teachers.items():
        teacher.load_state_dict(trial.encoders[name].state_dict())
        judges[name].load_state_dict(trial.heads[name].state_dict())
    taught = [*teachers.values(), *judges.values()]
    broadcast_from_first(x for m in taught for x in (*m.parameters(), *m.buffers()))


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
