"""What a comparison says while it runs."""

import time
from collections.abc import Sequence
from datetime import timedelta

from cggm.comparison.plan import Run
from cggm.comparison.queue import Outcome


class Progress:
    """Prints a line per finished training, with the time left.

    Args:
        runs: All trainings of the comparison.
        jobs: Trainings side by side.
    """

    def __init__(self, runs: Sequence[Run], *, jobs: int) -> None:
        self.jobs = jobs
        self._width = max((len(run.method) for run in runs), default=0)
        self._start = time.monotonic()
        self._ended = 0
        kinds = len({run.method for run in runs}), len({run.seed for run in runs})
        tasks = ", ".join(dict.fromkeys(run.task for run in runs))
        print(
            f"{len(runs)} trainings: {kinds[0]} methods x {kinds[1]} seeds on {tasks}", flush=True
        )

    def show(self, outcome: Outcome, done: int, total: int) -> None:
        """Report one training."""
        self._ended += 1
        run = outcome.run
        elapsed = time.monotonic() - self._start
        left = timedelta(seconds=round(elapsed / self._ended * (total - done)))
        what = f"{run.task} {run.method:<{self._width}} seed {run.seed}"
        state = "" if outcome.code == 0 else f"  {_state(outcome)}"
        count = f"[{done:>{len(str(total))}}/{total}]"
        print(f"{count} {what} {outcome.seconds:6.0f} s, {left} left{state}", flush=True)

    def close(self, failed: Sequence[Outcome]) -> None:
        """List the trainings that failed."""
        for outcome in failed:
            run = outcome.run
            print(f"failed: {run.task} {run.method} seed {run.seed}: {outcome.message}")
        if failed:
            print(
                "Run the same command again to try these again; each has a log beside its folder."
            )


def _state(outcome: Outcome) -> str:
    return f"refused: {outcome.message}" if outcome.code == 2 else f"FAILED ({outcome.code})"
