"""SIGKILL at random instants of a training that saves every step, which then is resumed.

Most processes are forks that stand for process starts, see forked.py; some are real starts of the
command. Instants are uniform over the life of a fork, and over a real start's from its
configuration on, as it imports for most of the time before. What counts are kills of a training
that has begun and has steps to make; those before and after come on top.
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.processes.child import in_child

_INTERVAL = 1  # steps between two checkpoints
_IN_A_PHASE = {
    "first seconds of a training": 25,
    "first seconds of a group": 10,
    "locking": 15,
    "results and report": 20,
    "report command": 10,
    "export": 20,
}
_AGAIN = "as if nothing had happened"
_LONGER = 1.2  # than the undisturbed run, where kills are drawn from: processes are not alike


def measure(quick: bool) -> dict[str, Any]:
    kills, starts = (2, 0) if quick else (30, 2)
    figures = in_child(_measure, kills, starts)
    in_phases = dict.fromkeys(_IN_A_PHASE, 1) if quick else _IN_A_PHASE
    phases = figures["other phases"] = in_child(_kill_in_phases, in_phases)
    counts = [figures[kind] for kind in ("forks", "real starts") if kind in figures]
    figures["cut"] = "for time: 30 forks and 2 real starts where earlier runs had 100 and 5"
    return {
        "bar": f"{kills + starts} of {kills + starts} killed in the midst of the training, and all "
        "that were killed before or after, end with the bytes of the uninterrupted run once "
        f"started again, with at most {_INTERVAL} step lost; {sum(_IN_A_PHASE.values())} of "
        f"{sum(_IN_A_PHASE.values())} killed in other phases end as if nothing had happened",
        "holds": sum(found["kills during the training"] for found in counts) == kills + starts
        and all(
            found["identical"] == found["kills"] and found["most steps lost"] <= _INTERVAL
            for found in counts
        )
        and all(
            found[_AGAIN] == found["kills"] == in_phases[what] and not found["left at the end"]
            for what, found in phases.items()
        ),
        "figures": figures,
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    forks = [figures[kind] for kind in ("forks", "real starts") if kind in figures]
    kills, identical = (sum(found[kind] for found in forks) for kind in ("kills", "identical"))
    most = max(found["most steps lost"] for found in forks)
    phases = figures.get("other phases", {}).values()
    others, again = (sum(found[kind] for found in phases) for kind in ("kills", _AGAIN))
    in_phases = f"; {again} of {others} leave what the next command goes on from" if phases else ""
    return (
        "SIGKILL during a training; in its first seconds, locks, report and export",
        f"{identical} of {kills} resume to the same bytes, at most {most} step lost{in_phases}",
        "",
    )


def _kill_in_phases(counts: Mapping[str, int]) -> dict[str, Any]:
    from benchmarks.faults.training.phases import Marks, kill, phases_in

    with TemporaryDirectory() as name:
        phases, marks = phases_in(Path(name)), Marks()
        return {
            what: kill(phases[what], count, Path(name) / f"killed-{number}", marks)
            for number, (what, count) in enumerate(counts.items())
        }


def _measure(kills: int, starts: int) -> dict[str, Any]:
    from benchmarks.faults.training.small_training import SmallTraining

    with TemporaryDirectory() as name:
        training = SmallTraining(Path(name))
        forks = _Killer(training, _fork, _fork_to_end).kill(kills)
        figures: dict[str, Any] = {"a whole run, s": training.seconds, "forks": forks}
        if starts:
            killer = _Killer(training, _start, _start_to_end, after="config.yaml")
            figures["real starts"] = killer.kill(starts)
    return figures


class _Killer:
    """Kills runs of one training and starts them again.

    Args:
        training: What is killed.
        start: Starts a run in a process group of its own, given steps to note; returns its number.
        finish: Begins or resumes it, to its end; returns the exit code.
        after: File of the run from whose appearance on it is killed, other than from its start on.
    """

    def __init__(
        self,
        training: Any,  # noqa: ANN401
        start: Callable[..., int],
        finish: Callable[..., int],
        after: str = "",
    ) -> None:
        self._training, self._start, self._finish, self._after = training, start, finish, after
        self._steps = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._counts: Counter[str] = Counter()
        self._lost: list[int] = []
        self._at: list[int] = []

    def kill(self, count: int) -> dict[str, Any]:
        """Kill until so many were hit during the training."""
        rng = np.random.default_rng(0)
        run, counts = self._training.folder / self._start.__name__, self._counts
        while counts["during the training"] < count:
            self._kill_one(run, float(rng.uniform(0, _LONGER * self._training.seconds)))
            shutil.rmtree(run, ignore_errors=True)
        return {
            "kills": len(self._lost),
            "kills during the training": counts["during the training"],
            "kills before the configuration was written": counts["before"],
            "kills after the last step was saved": counts["after"],
            "drafts left": counts["drafts"],
            "steps at the kills": f"{min(self._at)} to {max(self._at)}",
            "most steps lost": max(self._lost),
            "identical": counts["identical"],
            "with a temporary file left at the end": counts["left"],
        }

    def _kill_one(self, run: Path, seconds: float) -> None:
        from benchmarks.faults.training.small_training import (
            checkpoints_are_whole,
            hidden,
            saved_steps,
        )

        self._steps[0] = 0
        pid = self._start(self._training, run, self._steps)
        while self._after and not (run / self._after).exists():
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return  # it had ended
        self._counts[self._phase(run)] += 1
        self._counts["drafts"] += any("draft" in name for name in hidden(run))
        self._at.append(self._begun(run))
        self._lost.append(self._at[-1] - saved_steps(run))
        whole = checkpoints_are_whole(run)
        code = self._finish(self._training, run)
        self._counts["identical"] += whole and code == 0 and self._training.equals_whole(run)
        self._counts["left"] += bool(hidden(run))

    def _phase(self, run: Path) -> str:
        from benchmarks.faults.training.small_training import saved_steps

        if not (run / "config.yaml").exists():
            return "before"
        last = saved_steps(self._training.whole)
        return "after" if saved_steps(run) == last else "during the training"

    def _begun(self, run: Path) -> int:
        """Steps of the process; those of the log where the process does not note them."""
        from cggm.runs.watch.logs import read_jsonl

        log = run / "balance.jsonl"
        logged = [line["iteration"] for line in read_jsonl(log)] if log.exists() else []
        return max([self._steps[0], *logged])


def _fork(training: Any, run: Path, steps: memoryview) -> int:  # noqa: ANN401
    from benchmarks.faults.processes.forked import start
    from benchmarks.faults.training.small_training import count_steps

    def work() -> int:
        count_steps(steps)
        return int(training.train(run))

    return start(work, training.log)


def _fork_to_end(training: Any, run: Path) -> int:  # noqa: ANN401
    from benchmarks.faults.processes.forked import forked

    return forked(lambda: training.train(run), training.log)


def _start(training: Any, run: Path, steps: memoryview) -> int:  # noqa: ANN401
    return _process(training, run).pid


def _start_to_end(training: Any, run: Path) -> int:  # noqa: ANN401
    return _process(training, run).wait()


def _process(training: Any, run: Path) -> "subprocess.Popen[bytes]":  # noqa: ANN401
    from pipelines import mosi_train

    return subprocess.Popen(
        [sys.executable, str(mosi_train.__file__), *training.arguments(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
