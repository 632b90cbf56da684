"""Running means of the channels of what encoders return."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from cggm.binding import Binding
from cggm.scores import Window
from cggm.tensors import Features, map_tensors, tensors_in, without_subclass


def norm_of(tensors: Iterable[Tensor | None]) -> Tensor:
    """Euclidean norm of all tensors together, without a graph."""
    return torch.nn.utils.get_total_norm([x.detach() for x in tensors if x is not None])


def effective_updates(norms: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Squared norm of gradients over that of parameters, ``(M,)``; 0 where those are all 0.

    Args:
        norms: Norm of each module's gradient, ``(M,)``.
        modules: Owners of the parameters.
    """
    sizes = [norm_of(p for p in m.parameters() if p.requires_grad).to(norms) for m in modules]
    size = torch.stack(sizes)
    return torch.where(size > 0, (norms / size).square(), 0.0)


def with_gain(place: str, tensor: Tensor, axis: int, window: Window) -> Tensor:
    """The tensor itself, bit for bit, times gains of one whose gradient the window gathers.

    Args:
        place: Name of the gains.
        tensor: Features.
        axis: Of the channels, each of which has a gain.
        window: Holds the gains; their gradients are in float32 or better.
    """
    gains = window.leaf(place, torch.ones(tensor.shape[axis], device=tensor.device))
    shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
    return (tensor * gains.view(shape)).to(tensor.dtype)


def gain_updates(gradients: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Effective updates of each modality's gains, ``(M,)``, not finite without a gradient.

    A gradient of gains has the loss scale in it, which those of parameters have lost when the
    optimizer steps. A zero added to the loss has that scale as its gradient.

    Args:
        gradients: Gradients of the leaf ``zero`` and of gains by place, added up over ranks.
        names: Modalities; a place is a name, a slash and a number.
    """
    scale = gradients["zero"]
    found = [[g for p, g in gradients.items() if p.rpartition("/")[0] == n] for n in names]
    return torch.stack([torch.cat(mine).div(scale).square().mean() for mine in found])


def map_channels(
    function: Callable[[str, Tensor], Tensor], name: str, features: Features
) -> Features:
    """Apply a function to each tensor of floats of two and more axes, and to its place.

    Args:
        function: Takes a place, the name and a number, and a tensor.
        name: Of the modality.
        features: Output of an encoder; other leaves stay as they are.
    """
    numbers = count()

    def apply(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or not tensor.is_floating_point():
            return tensor
        return function(f"{name}/{next(numbers)}", tensor)

    return map_tensors(apply, features)


def channel_axis(tensor: Tensor, binding: Binding) -> int:
    """Axis of channels: the last for a linear output layer, or in late fusion of three; else 1."""
    last = binding.channels_last or (binding.late_fusion and tensor.ndim == 3)
    return tensor.ndim - 1 if last else 1


class ChannelMeans(nn.Module):
    """Running mean of each channel over all samples and positions, by place."""

    def __init__(self) -> None:
        super().__init__()
        self._means: dict[str, Tensor] = {}  # the last entry counts as well
        self._device = torch.device("cpu")

    def place(self, device: torch.device) -> None:
        """Move to a device."""
        self._device = device
        self.set_extra_state(self._means)

    def mean(self, place: str) -> Tensor | None:
        """Mean of each channel, ``(C,)``, once there is one."""
        return self._means[place][:-1] if place in self._means else None

    @torch.no_grad()
    def add(self, name: str, features: Features, binding: Binding, window: Window) -> None:
        """Add sums of a modality's features, ``(C + 1,)``, to a window, as ``channels/`` and place.

        The last entry counts what was summed. Where a bool mask of their leading axes comes with
        features, true for real steps, absent steps are left out.

        Args:
            name: Of the modality.
            features: Output of its encoder.
            binding: Tells which axis is that of channels.
            window: Where sums add up.

        Raises:
            ValueError: If there is no tensor with channels.
        """
        masks = [leaf for leaf in tensors_in(features) if leaf.dtype == torch.bool]
        found: dict[str, Tensor] = {}

        def add(place: str, tensor: Tensor) -> Tensor:
            axis = channel_axis(tensor, binding)
            found[place] = _channel_sums(without_subclass(tensor).float(), axis, masks)
            return tensor

        map_channels(add, name, features)
        if not found:
            raise ValueError(
                f"Expected tensors of floats with channels from {name!r}, to average them, but got "
                "none. Return features of shape (B, D), (B, T, D) or (B, D, *S)."
            )
        for place, total in found.items():
            window.add(f"channels/{place}", total)

    def commit(self, totals: Mapping[str, Tensor]) -> None:
        """Take a window's sums by place, added up over ranks, into the means."""
        for place, total in totals.items():
            old = self._means.get(place, torch.zeros_like(total))
            number = old[-1:] + total[-1:]
            change = (total[:-1] - total[-1:] * old[:-1]) / number.clamp_min(1)
            self._means[place] = torch.cat([old[:-1] + change, number])

    def get_extra_state(self) -> dict[str, Tensor]:
        """The means, whose widths the features decide."""
        return dict(self._means)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`get_extra_state` gave, on the device."""
        self._means = {place: mean.to(self._device) for place, mean in state.items()}


def _channel_sums(values: Tensor, axis: int, masks: list[Tensor]) -> Tensor:
    number = values.new_full((1,), values.numel() // values.shape[axis])
    fitting = [m for m in masks if m.shape == values.shape[:-1]]
    if fitting and axis == values.ndim - 1:
        values = values.masked_fill(~fitting[0][..., None], 0.0)
        number = fitting[0].sum().float()[None]
    others = [i for i in range(values.ndim) if i != axis]
    return torch.cat([values.sum(others), number])
