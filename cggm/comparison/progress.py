"""What a comparison says while it runs."""

import time
from collections.abc import Collection, Sequence
from datetime import timedelta

from cggm.comparison.plan import Run
from cggm.comparison.store import Outcome


class Progress:
    """Prints a line per finished training, with the time left.

    Args:
        runs: All trainings of the comparison.
        pending: How many of them are to be run.
    """

    def __init__(self, runs: Sequence[Run], pending: int) -> None:
        self._width = max(len(run.method) for run in runs)
        self._start = time.monotonic()
        self._ended = 0
        methods = _count("method", {run.method for run in runs})
        seeds = _count("seed", {run.seed for run in runs})
        tasks = ", ".join(dict.fromkeys(run.task for run in runs))
        trainings = f"{_count('training', runs)}: {methods}, {seeds}, on {tasks}"
        print(f"{trainings}; {pending} to run", flush=True)

    def show(self, outcome: Outcome, over: int, total: int) -> None:
        """Report one training.

        Args:
            outcome: How it ended.
            over: Trainings that need not be run any more.
            total: All trainings.
        """
        self._ended += 1
        run = outcome.run
        elapsed = time.monotonic() - self._start
        left = timedelta(seconds=round(elapsed / self._ended * (total - over)))
        what = f"{run.task} {run.method:<{self._width}} seed {run.seed}"
        count = f"[{over:>{len(str(total))}}/{total}]"
        state = f"{outcome.seconds:6.0f} s, {left} left{_ending(outcome)}"
        print(f"{count} {what} {state}", flush=True)

    def close(self, failed: Sequence[Outcome]) -> None:
        """List the trainings that failed, with their logs."""
        for outcome in failed:
            run = outcome.run
            print(f"failed: {run.task} {run.method} seed {run.seed}: {outcome.message}")
            print(f"        {outcome.log}")
        if failed:
            print("The same command tries them again.")


def _count(noun: str, things: Collection[object]) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _ending(outcome: Outcome) -> str:
    if outcome.refused:
        return f", refused: {outcome.message}"
    return f", FAILED with exit code {outcome.code}" if outcome.failed else ""
