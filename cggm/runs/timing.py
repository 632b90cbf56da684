"""How long a training takes, and how much of that it waits for data."""

import time

from ignite.engine import Engine, Events


class StepTimes:
    """Seconds that the steps of a training took; what happens between epochs is left out.

    Attributes:
        loading: Seconds of waiting for batches.
        stepping: Seconds from a batch to the end of its step.
    """

    def __init__(self) -> None:
        self.loading = self.stepping = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow a training; steps end where this handler's turn comes after an iteration."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._before_batch)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._after_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)

    def restart(self) -> None:
        """Count from 0 again."""
        self.loading = self.stepping = 0.0

    def _before_batch(self) -> None:
        self._mark = time.monotonic()

    def _after_batch(self) -> None:
        self.loading += self._lap()

    def _after_step(self) -> None:
        self.stepping += self._lap()

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before


class Stopwatch:
    """Seconds of a training since they were last asked for, validations included."""

    def __init__(self) -> None:
        self._steps = StepTimes()
        self._mark = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Follow a training."""
        self._steps.attach(engine)

    def lap(self) -> dict[str, float]:
        """``seconds`` since the last lap, and the ``loading_seconds`` among them."""
        before, self._mark = self._mark, time.monotonic()
        waited = self._steps.loading
        self._steps.restart()
        return {"seconds": self._mark - before, "loading_seconds": waited}
