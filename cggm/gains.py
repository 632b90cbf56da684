"""Effective updates: of parameters, and of gains of one that tell how features are used."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


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
