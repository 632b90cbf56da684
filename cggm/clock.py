"""How far a training is, as methods that draw or change with time need to know it."""

from torch import nn


class Clock(nn.Module):
    """Epoch and optimizer steps of a balancer, saved and restored with it.

    Attributes:
        epoch: The epoch under way, counted from 1; 0 where none was started.
        steps: Optimizer steps made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.steps = 0

    @property
    def current(self) -> int:
        """The epoch under way, the first one in a loop that starts none."""
        return max(self.epoch, 1)

    def get_extra_state(self) -> dict[str, int]:
        """Both numbers."""
        return {"epoch": self.epoch, "steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.epoch, self.steps = state["epoch"], state["steps"]
