"""Running means of the channels of what encoders return."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from cggm.binding import Binding
from cggm.tensors import Features, map_tensors, plain


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


class Gains:
    """Factors of one for the channels of tensors, which only gather gradients.

    A gradient of theirs has the loss scale in it, which those of parameters have lost when the
    optimizer steps. A zero added to the loss has that scale as its gradient.

    Args:
        device: Of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.zero = torch.zeros((), device=device, requires_grad=True)
        self._gains: dict[str, Tensor] = {}

    def apply(self, place: str, tensor: Tensor, axis: int) -> Tensor:
        """The tensor itself, bit for bit; the gradient of its gains is in float32 or better."""
        shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
        if place not in self._gains:
            self._gains[place] = torch.ones(
                tensor.shape[axis], device=self.device, requires_grad=True
            )
        return (tensor * self._gains[place].view(shape)).to(tensor.dtype)

    def gradients(self) -> list[Tensor]:
        """Gradient of the zero, and of each gain."""
        leaves = (self.zero, *self._gains.values())
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    def updates(self, names: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        """Effective updates of each modality's gains, ``(M,)``, not finite without a gradient.

        Args:
            names: Modalities; a place is a name, a slash and a number.
            gradients: What :meth:`gradients` gave, added up over ranks.
        """
        scale, placed = gradients[0], dict(zip(self._gains, gradients[1:], strict=True))
        found = [[g for p, g in placed.items() if p.rpartition("/")[0] == name] for name in names]
        return torch.stack([torch.cat(mine).div(scale).square().mean() for mine in found])

    def keep(self, kept: Tensor) -> None:
        """Forget the gradients unless ``kept``."""
        for leaf in (self.zero, *self._gains.values()):
            if leaf.grad is not None:
                leaf.grad = torch.where(kept, leaf.grad, 0.0)

    def clear(self) -> None:
        """Forget the gradients."""
        for leaf in (self.zero, *self._gains.values()):
            leaf.grad = None


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
    """Running mean of each channel over all samples and positions, by place.

    Attributes:
        window: Sums since the last commit, ``(C + 1,)``, the last entry counts what was summed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}  # the last entry counts as well
        self._device = torch.device("cpu")

    def place(self, device: torch.device) -> None:
        """Move to a device, and forget the window."""
        self._device, self.window = device, {}
        self.set_extra_state(self._means)

    def mean(self, place: str) -> Tensor | None:
        """Mean of each channel, ``(C,)``, once there is one."""
        return self._means[place][:-1] if place in self._means else None

    @torch.no_grad()
    def add(self, name: str, features: Features, binding: Binding) -> None:
        """Add a modality's features to the window.

        Where a bool mask of their leading axes comes with them, true for real steps, absent steps
        are left out.

        Raises:
            ValueError: If there is no tensor with channels.
        """
        masks: list[Tensor] = []
        map_tensors(lambda leaf: _noted(leaf, masks), features)
        found: dict[str, Tensor] = {}

        def add(place: str, tensor: Tensor) -> Tensor:
            axis = channel_axis(tensor, binding)
            found[place] = _channel_sums(plain(tensor).float(), axis, masks)
            return tensor

        map_channels(add, name, features)
        if not found:
            raise ValueError(
                f"Expected tensors of floats with channels from {name!r}, to average them, but got "
                "none. Return features of shape (B, D), (B, T, D) or (B, D, *S)."
            )
        for place, total in found.items():
            self.window[place] = self.window[place] + total if place in self.window else total

    def keep(self, kept: Tensor) -> None:
        """Forget the window unless ``kept``."""
        self.window = {place: torch.where(kept, x, 0.0) for place, x in self.window.items()}

    def commit(self, totals: list[Tensor]) -> None:
        """Take the window's sums, added up over ranks, into the means."""
        for place, total in zip(self.window, totals, strict=True):
            old = self._means.get(place, torch.zeros_like(total))
            number = old[-1:] + total[-1:]
            change = (total[:-1] - total[-1:] * old[:-1]) / number.clamp_min(1)
            self._means[place] = torch.cat([old[:-1] + change, number])
        self.window = {}

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


def _noted(leaf: Tensor, masks: list[Tensor]) -> Tensor:
    if leaf.dtype == torch.bool:
        masks.append(leaf)
    return leaf
