"""Runs the trainings of a comparison, each once, however often it is interrupted."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from cggm.comparison.plan import Run, command_line
from cggm.comparison.processes import Script, share_imports
from cggm.comparison.store import Outcome, Store
from cggm.comparison.tasks import TASKS
from cggm.runs.folder import RunFolder

_POLL = 0.2


class Queue:
    """Trainings that are run one after another or side by side, each in a process of its own.

    A training that is finished, or that its method refuses, is not run again. One that was
    interrupted goes on from its last checkpoint, one that failed is tried again by the next
    command. The first training of a task runs alone, because it may write the demo data. What the
    scripts import is in the memory of all, see :mod:`cggm.comparison.processes`.

    Args:
        store: What trainings came to.
        pipelines: Folder of the training scripts.
        lock: Descriptor that trainings inherit, see :func:`cggm.comparison.lock.locked`.
        jobs: Trainings side by side; they share the processor's cores.
        report: Called with each outcome, how many trainings are over and how many there are.
    """

    def __init__(
        self,
        store: Store,
        pipelines: Path,
        *,
        lock: int,
        jobs: int,
        report: Callable[[Outcome, int, int], None],
    ) -> None:
        self.store = store
        self.pipelines = pipelines
        self.lock = lock
        self.jobs = jobs
        self.report = report
        self._stop = Event()

    def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """Run what is not finished.

        Args:
            runs: All trainings of the comparison.

        Returns:
            Those that failed.
        """
        pending = self.store.pending(runs)
        if not pending:
            return []
        modules = {module for run in pending for module in TASKS[run.task].modules}
        share_imports(sorted(modules), threads=max(1, (os.cpu_count() or 1) // self.jobs))
        first = [*{run.task: run for run in reversed(pending)}.values()]
        rest = [run for run in pending if run not in first]
        failed: list[Outcome] = []
        for batch, jobs in ((first, 1), (rest, self.jobs)):
            for outcome in self._outcomes(batch, jobs):
                self.store.keep(outcome)
                failed += [outcome] if outcome.failed else []
                over = len(runs) - len(self.store.pending(runs)) + len(failed)
                self.report(outcome, over, len(runs))
        return failed

    def _outcomes(self, runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
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

    def _train(self, run: Run) -> Outcome:
        folder = RunFolder(run.folder(self.store.output))
        resume = any(folder.checkpoints.glob("epoch-*"))
        if not resume and folder.path.is_dir():  # killed before its first checkpoint
            shutil.rmtree(folder.path)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        log = folder.path.with_name(f"{folder.path.name}.log")
        start = time.monotonic()
        told = command_line(run, self.store.output, resume=resume)
        script = self.pipelines / TASKS[run.task].script
        code, peak = self._watch(Script(script, told, log, inherited=self.lock))
        return Outcome(run, code, time.monotonic() - start, peak, _last_line(log), resume, log)

    def _watch(self, script: Script) -> tuple[int, float | None]:
        """Wait for a script, or end it when the comparison is to end; its code and peak memory."""
        peak = None
        while (code := script.poll()) is None:
            peak = _peak_mb(script.pid) or peak
            if self._stop.is_set():
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


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""
