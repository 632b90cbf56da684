"""Deferred looks for numbers that are not finite: every few steps, so that no step waits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SeenStep:
    """A step that was made before anybody looked at its numbers.

    Attributes:
        epoch: Counted from 1.
        iteration: The last one of its window.
        samples: Identifiers of its samples, on this process.
        losses: Of its window, as they are on the device.
        moved: Parameters with a gradient, and names of the heads' gradients, in the order of
            ``finite``.
        finite: Whether the losses together are, then each gradient, bool, on the device.
    """

    epoch: int
    iteration: int
    samples: Sequence[str]
    losses: Sequence[Tensor]
    moved: Sequence[nn.Parameter | str]
    finite: Tensor


class DeferredLooks:
    """What a guard needs to look at the numbers of a GPU later than at each step.

    Waiting for the device before each step leaves it idle for as long as the next kernels take to
    arrive. Steps therefore go on for a while; the state from before them is held, and is what is
    kept should one of them turn out to be bad. Nothing is saved, validated or ended in between
    without a look.

    Args:
        every: Steps between two looks.
        hold: Holds the state, given the completed iterations.
        save_held: Saves what is held, unless something newer was saved; returns the completed
            iterations and where.
    """

    def __init__(
        self, every: int, hold: Callable[[int], None], save_held: Callable[[], tuple[int, Path]]
    ) -> None:
        self.every, self.hold, self.save_held = every, hold, save_held
        self._steps: list[SeenStep] = []

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return len(self._steps) >= self.every

    def add(self, step: SeenStep) -> None:
        """Take a step for granted until the next look."""
        self._steps.append(step)

    def look(self) -> tuple[SeenStep, list[bool]] | None:
        """Look at the steps since the last time; waits for the device.

        Returns:
            The first bad step with ``finite`` as a list; ``None`` where all were good.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return None
        every = torch.cat([step.finite for step in steps]).tolist()
        for step in steps:
            own, every = every[: len(step.finite)], every[len(step.finite) :]
            if not all(own):
                return step, own
        return None


def finite_flags(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Whether all losses are finite, then whether each gradient is, bool, ``(1 + G,)``.

    A gradient whose norm overflows counts as not finite, as it does for clipping.

    Args:
        losses: Of any shapes.
        gradients: On one device.
    """
    device = gradients[0].device if gradients else None
    fine = [loss.to(device).isfinite().all() for loss in losses]
    together = torch.stack(fine).all() if fine else torch.ones((), dtype=torch.bool, device=device)
    if not gradients:
        return together[None]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm([*gradients])])
    return torch.cat([together[None], norms.isfinite()])
