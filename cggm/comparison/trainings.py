"""Runs the trainings of a comparison, each once, however often it is interrupted."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

from cggm.comparison.plan import PlannedRun, command_line
from cggm.comparison.processes import Script, share_imports
from cggm.comparison.records import Outcome, RecordStore
from cggm.runs import RunFolder, read_reported_error


class ComparisonProgress:
    """Prints a line per finished training, with the time left.

    Args:
        runs: All trainings of the comparison.
        pending: How many of them are to be run.
    """

    def __init__(self, runs: Sequence[PlannedRun], pending: int) -> None:
        self._width = max(len(run.method) for run in runs)
        self._start = time.monotonic()
        self._ended = 0
        methods = _count("method", {run.method for run in runs})
        seeds = _count("seed", {run.seed for run in runs})
        tasks = ", ".join(dict.fromkeys(run.task.name for run in runs))
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
        what = f"{run.task.name} {run.method:<{self._width}} seed {run.seed}"
        count = f"[{over:>{len(str(total))}}/{total}]"
        state = f"{outcome.seconds:6.0f} s, {left} left{_ending(outcome)}"
        print(f"{count} {what} {state}", flush=True)

    def count(self, states: Sequence[str], over: int, total: int) -> None:
        """Say how many jobs of a cluster wait and run.

        Args:
            states: Of each job, ``queued`` or ``running``.
            over: Trainings that need not be run any more.
            total: All trainings.
        """
        told = [f"{states.count(state)} {state}" for state in ("queued", "running")]
        print(", ".join([*told, f"{over} of {total} finished"]), flush=True)

    def close(self, failed: Sequence[Outcome]) -> None:
        """List the trainings that failed, with their logs."""
        for outcome in failed:
            run = outcome.run
            print(f"failed: {run.task.name} {run.method} seed {run.seed}: {outcome.message}")
            print(f"        {outcome.log}")
        if failed:
            print("The same command tries them again.")


def _count(noun: str, things: Collection[object]) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _ending(outcome: Outcome) -> str:
    if outcome.refused:
        return f", refused: {outcome.message}"
    return f", FAILED with exit code {outcome.code}" if outcome.failed else ""


_POLL = 0.2


class RunningScript(Protocol):
    """A script that was started, here or in a job of a cluster."""

    @property
    def pid(self) -> int:
        """Number of its process."""

    def poll(self) -> int | None:
        """Exit code, negative after a signal; ``None`` while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""


class Queue:
    """Trainings that are run one after another or side by side, each in a process of its own.

    A training that is finished, or that its method refuses, is not run again. One that was
    interrupted goes on from its last checkpoint, one that failed is tried again by the next
    command. The first training of a task runs alone, because it may write the demo data. What the
    scripts import is in the memory of all, see :mod:`cggm.comparison.processes`.

    Args:
        store: What trainings came to.
        lock: Descriptor of the folder's lock, see :func:`cggm.runs.storage.locks.holding`.
            Trainings inherit it: one outlives a command that is killed, and a second one must not
            be started in its folder meanwhile. ``None`` without locks.
        jobs: Trainings side by side; they share the processor's cores.
        report: Called with each outcome, how many trainings are over and how many there are.
    """

    def __init__(
        self,
        store: RecordStore,
        *,
        lock: int | None,
        jobs: int,
        report: Callable[[Outcome, int, int], None],
    ) -> None:
        self.store = store
        self.lock = lock
        self.jobs = jobs
        self.report = report
        self._stop = Event()

    def run(self, runs: Sequence[PlannedRun]) -> list[Outcome]:
        """Run what is not finished.

        Args:
            runs: All trainings of the comparison.

        Returns:
            Those that failed.
        """
        pending = self.store.pending(runs)
        if not pending:
            return []
        modules = {module for run in pending for module in run.task.imports}
        share_imports(sorted(modules), threads=max(1, (os.cpu_count() or 1) // self.jobs))
        first = [*{run.task.name: run for run in reversed(pending)}.values()]
        rest = [run for run in pending if run not in first]
        failed: list[Outcome] = []
        for batch, jobs in ((first, 1), (rest, self.jobs)):
            for outcome in self._outcomes(batch, jobs):
                self.store.keep(outcome)
                failed += [outcome] if outcome.failed else []
                over = len(runs) - len(self.store.pending(runs)) + len(failed)
                self.report(outcome, over, len(runs))
        return failed

    def _outcomes(self, runs: Sequence[PlannedRun], jobs: int) -> Iterator[Outcome]:
        waiting = list(runs)
        running: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        # Another seed may have been refused meanwhile.
                        for run in self.store.pending([waiting.pop(0)]):
                            running.add(pool.submit(self._train, run))
                    # Without a timeout, a signal just before the wait would be noticed after it.
                    ended, running = wait(running, _POLL, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            except BaseException:
                self._stop.set()
                raise

    def _train(self, run: PlannedRun) -> Outcome:
        start = partial(Script, inherited=self.lock)
        return train(run, self.store.output, start, ending=self._stop.is_set)


def train(
    run: PlannedRun,
    output: Path,
    start: Callable[..., RunningScript],
    *,
    ending: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train once: from the last checkpoint, if an earlier start left one.

    Args:
        run: The training, which nothing else works on.
        output: Folder of the comparison.
        start: Starts a script; called with its file, its command line, its log and ``error_file=``,
            see :class:`cggm.comparison.processes.Script`.
        ending: Whether the script is to be asked to end; called now and then.
    """
    folder = RunFolder(run.folder(output))
    resume = any(folder.checkpoints.glob("epoch-*"))
    if not resume and folder.path.is_dir():  # killed before its first checkpoint
        shutil.rmtree(folder.path)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    log = run.log(output)
    began = time.monotonic()
    told = command_line(run, output, resume=resume)
    error_file = log.with_suffix(".error.json")
    error_file.unlink(missing_ok=True)
    code, peak = _watch(start(run.task.script, told, log, error_file=error_file), ending)
    error = read_reported_error(error_file) if code else None
    return Outcome(run, code, time.monotonic() - began, peak, error, resume, log)


def _watch(script: RunningScript, ending: Callable[[], bool]) -> tuple[int, float | None]:
    """Wait for a script, or end it when that is asked for; its code and peak memory."""
    peak = None
    while (code := script.poll()) is None:
        peak = _peak_mb(script.pid) or peak
        if ending():
            script.terminate()
        time.sleep(_POLL)
    return code, peak


def _peak_mb(pid: int) -> float | None:
    """Peak resident memory of a process, where the system tells it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return round(int(lines[0].split()[1]) / 1024, 1) if lines else None
