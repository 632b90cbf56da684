"""The losses of an epoch, which a checkpoint in its midst has to hold."""

from typing import Any

import torch
from torch import Tensor

from cggm.distributed import mean_over_ranks


class EpochLosses:
    """Losses of an epoch's steps so far, on the device, whose mean a resumed run needs as well.

    Args:
        device: Of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._values: list[Tensor] = []
        self._device = device

    def add(self, loss: Tensor) -> None:
        """Take the loss of a step, the mean of those of all ranks."""
        self._values += mean_over_ranks([loss.detach()])

    def mean(self) -> float:
        """The mean of those that are finite, NaN where none is."""
        values = torch.stack(self._values)
        return values[values.isfinite()].mean().item()

    def keep(self, count: int) -> None:
        """Forget all but the first ones."""
        del self._values[count:]

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"values": torch.stack(self._values) if self._values else torch.zeros(0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self._values = [*state_dict["values"].to(self._device)]
