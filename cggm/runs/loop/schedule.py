"""The learning rate as a function of the step, so that nothing needs to be saved."""

import math

from ignite.engine import Engine, Events
from torch.optim import Optimizer


def warmup_cosine(
    step: int, *, warmup: int, total: int, start: float, peak: float, final: float
) -> float:
    """Linear warm-up followed by cosine decay.

    Args:
        step: Step from 0 on.
        warmup: Steps from ``start`` to just below ``peak``.
        total: Steps in all; from there on the rate is ``final``.
        start: Rate at step 0.
        peak: Rate at step ``warmup``.
        final: Rate at step ``total - 1``.

    Returns:
        The learning rate.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


class WarmupCosine:
    """Sets the rate of an optimizer's groups before each iteration of an engine.

    Args:
        optimizer: All its groups get the same rate.
        warmup_epochs: Epochs of warm-up.
        start: Rate of the first iteration.
        peak: Rate after the warm-up.
        final: Rate of the last iteration.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_epochs: int,
        start: float,
        peak: float,
        final: float,
    ) -> None:
        self.optimizer = optimizer
        self.warmup_epochs = warmup_epochs
        self.rates = {"start": start, "peak": peak, "final": final}

    def attach(self, engine: Engine) -> None:
        """Attach to a training engine."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the rate of the iteration that begins."""
        length = engine.state.epoch_length or 1
        rate = warmup_cosine(
            engine.state.iteration - 1,
            warmup=self.warmup_epochs * length,
            total=(engine.state.max_epochs or 1) * length,
            **self.rates,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
