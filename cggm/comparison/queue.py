"""Runs the trainings of a comparison, each once, however often it is interrupted."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from cggm.comparison.plan import Run, command
from cggm.comparison.records import Record, read_records
from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.logs import JsonLines, read_jsonl

_REFUSED = 2  # exit code of a wrong usage, see cggm.runs.cli
_POLL = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Args:
        run: The training.
        code: Exit code.
        seconds: Duration.
        peak_mb: Peak memory, ``None`` where the system does not tell.
        message: Last line that it printed.
        resumed: Whether an earlier part of it was interrupted.
    """

    run: Run
    code: int
    seconds: float
    peak_mb: float | None
    message: str
    resumed: bool


class Queue:
    """Trainings that are run one after another or side by side, each in a process of its own.

    What a training came to is a line of ``runs.jsonl``; one that a method refuses is a line of
    ``refused.jsonl``. Neither is run again. A training that was interrupted goes on from its last
    checkpoint, one that failed is tried again by the next command. The first training of a task
    runs alone, because it may write the demo data.

    Args:
        output: Folder of the comparison.
        pipelines: Folder of the training scripts.
        jobs: Trainings side by side; they share the processor's cores.
        report: Called with each outcome, what is done and what there is in all.
    """

    def __init__(
        self,
        output: Path,
        pipelines: Path,
        *,
        jobs: int = 1,
        report: Callable[[Outcome, int, int], None] = lambda outcome, done, total: None,
    ) -> None:
        self.output = output
        self.pipelines = pipelines
        self.jobs = jobs
        self.report = report
        self._stop = Event()

    @property
    def records_file(self) -> Path:
        """One line per finished training."""
        return self.output / "runs.jsonl"

    @property
    def refused_file(self) -> Path:
        """One line per training that its method refused, with the reason."""
        return self.output / "refused.jsonl"

    def records(self) -> list[Record]:
        """Trainings that are finished."""
        return read_records(self.records_file) if self.records_file.exists() else []

    def refused(self) -> dict[tuple[str, str], str]:
        """Reasons by task and method."""
        if not self.refused_file.exists():
            return {}
        lines = read_jsonl(self.refused_file)
        return {(str(row["task"]), str(row["method"])): str(row["reason"]) for row in lines}

    def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """Run what is not finished.

        Args:
            runs: All trainings of the comparison.

        Returns:
            Those that failed, for another reason than a refusal.
        """
        done = {(r.task, r.method, r.seed) for r in self.records()}
        refused = self.refused()
        pending = [r for r in runs if r.key not in done and (r.task, r.method) not in refused]
        first = list({run.task: run for run in reversed(pending)}.values())
        failed = []
        finished = len(runs) - len(pending)
        for batch, jobs in ((first, 1), ([r for r in pending if r not in first], self.jobs)):
            for outcome in self._outcomes(batch, jobs):
                finished += 1
                self._keep(outcome)
                failed += [outcome] if outcome.code not in (0, _REFUSED) else []
                self.report(outcome, finished, len(runs))
        return failed

    def _outcomes(self, runs: Sequence[Run], jobs: int) -> Iterator[Outcome]:
        waiting = list(runs)
        running: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        running.add(pool.submit(self._train, waiting.pop(0), jobs))
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        outcome = future.result()
                        if outcome.code == _REFUSED:  # by every other seed as well
                            waiting = [r for r in waiting if not _alike(r, outcome.run)]
                        yield outcome
            except BaseException:
                self._stop.set()
                raise

    def _train(self, run: Run, jobs: int) -> Outcome:
        folder = run.folder(self.output)
        resume = (folder / "config.yaml").exists()
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.parent / f"{folder.name}.log"
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        start = time.monotonic()
        with log.open("ab") as file:
            process = subprocess.Popen(
                command(run, self.pipelines, self.output, resume=resume),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            peak = self._watch(process)
        seconds = time.monotonic() - start
        return Outcome(run, process.returncode, seconds, peak, _last_line(log), resume)

    def _watch(self, process: subprocess.Popen[bytes]) -> float | None:
        peak = None
        while process.poll() is None:
            peak = _peak_mb(process.pid) or peak
            if self._stop.is_set():
                process.terminate()
                process.wait()
            time.sleep(_POLL)
        return peak

    def _keep(self, outcome: Outcome) -> None:
        run = outcome.run
        if outcome.code == _REFUSED:
            row = {"task": run.task, "method": run.method, "reason": outcome.message}
            with JsonLines(self.refused_file) as lines:
                lines.write(row)
        if outcome.code == 0:
            with JsonLines(self.records_file) as lines:
                lines.write(asdict(_record(outcome, RunFolder(run.folder(self.output)))))


def _record(outcome: Outcome, folder: RunFolder) -> Record:
    results = json.loads(folder.results.read_text("utf-8"))
    run = outcome.run
    if "test" not in results and "validation" not in results:
        raise UserError(f"{folder.results}: no metrics.", "Delete the run's folder.")
    return Record(
        task=run.task,
        method=run.method,
        seed=run.seed,
        seconds=None if outcome.resumed else round(outcome.seconds, 2),
        peak_mb=outcome.peak_mb,
        simulated=results["simulated"],
        test=_numbers(results.get("test") or results["validation"]),
        subsets={name: _numbers(row) for name, row in results["subsets"].items()},
        heads={name: _numbers(row) for name, row in results.get("heads", {}).items()},
        path=str(folder.path),
    )


def _numbers(metrics: dict[str, object]) -> dict[str, float | None]:
    kinds = (int, float, type(None))
    return {name: value for name, value in metrics.items() if isinstance(value, kinds)}


def _alike(run: Run, other: Run) -> bool:
    return (run.task, run.method) == (other.task, other.method)


def _peak_mb(pid: int) -> float | None:
    """Peak resident memory of a process, where the system tells it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
