"""SIGKILL at random instants of a training that saves every step, which then is resumed.

Most processes are forks that stand for process starts, see forked.py; some are real starts of the
command. Instants are uniform over the time from the run's configuration to its end.
"""

import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from child import in_child

_INTERVAL = 1  # steps between two checkpoints


def measure(quick: bool) -> dict[str, Any]:
    kills, starts = (2, 0) if quick else (100, 5)
    figures = in_child(_measure, kills, starts)
    counts = [figures[kind] for kind in ("forks", "real starts") if kind in figures]
    return {
        "bar": f"{kills + starts} of {kills + starts} resume to the bytes of the uninterrupted "
        f"run, with at most {_INTERVAL} step lost",
        "holds": all(
            found["identical"] == found["kills"] and found["most steps lost"] <= _INTERVAL
            for found in counts
        ),
        "figures": figures,
    }


def _measure(kills: int, starts: int) -> dict[str, Any]:
    from small_training import SmallTraining

    with TemporaryDirectory() as name:
        training = SmallTraining(Path(name))
        forks = _Killer(training, _fork, _fork_to_end).kill(kills)
        figures: dict[str, Any] = {"a whole run, s": training.seconds, "forks": forks}
        if starts:
            figures["real starts"] = _Killer(training, _start, _start_to_end).kill(starts)
    return figures


class _Killer:
    """Kills runs of one training and resumes them.

    Args:
        training: What is killed.
        start: Starts a run in a process group of its own, given steps to note; returns its number.
        finish: Resumes it to its end; returns the exit code.
    """

    def __init__(
        self,
        training: Any,  # noqa: ANN401
        start: Callable[..., int],
        finish: Callable[..., int],
    ) -> None:
        self._training, self._start, self._finish = training, start, finish
        self._steps = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._counts: Counter[str] = Counter()

    def kill(self, count: int) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        lost, at = [], []
        for number in range(count):
            run = self._training.folder / f"{self._start.__name__}-{number}"
            lost.append(self._kill_one(run, float(rng.uniform(0, self._training.seconds))))
            at.append(self._steps[0])
        return {
            "kills": count,
            "kills during the training": self._counts["killed"],
            "drafts left": self._counts["drafts"],
            "steps at the kills": f"{min(at)} to {max(at)}",
            "most steps lost": max(lost),
            "identical": self._counts["identical"],
            "with a temporary file left at the end": self._counts["left"],
        }

    def _kill_one(self, run: Path, seconds: float) -> int:
        """Steps that were begun and have to be made again."""
        from small_training import checkpoints_are_whole, hidden, saved_steps

        self._steps[0] = 0
        pid = self._start(self._training, run, self._steps)
        while not (run / "config.yaml").exists():
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(pid, signal.SIGKILL)
        self._counts["killed"] += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
        self._counts["drafts"] += any("draft" in name for name in hidden(run))
        lost = self._begun(run) - saved_steps(run)
        whole = checkpoints_are_whole(run)
        code = self._finish(self._training, run)
        self._counts["identical"] += whole and code == 0 and self._training.equals_whole(run)
        self._counts["left"] += bool(hidden(run))
        return lost

    def _begun(self, run: Path) -> int:
        """Steps of the process; those of the log where the process does not note them."""
        from cggm.runs.logs import read_jsonl

        log = run / "balance.jsonl"
        logged = [line["iteration"] for line in read_jsonl(log)] if log.exists() else []
        self._steps[0] = max([self._steps[0], *logged])
        return self._steps[0]


def _fork(training: Any, run: Path, steps: memoryview) -> int:  # noqa: ANN401
    from forked import start
    from small_training import count_steps

    def work() -> int:
        count_steps(steps)
        return int(training.train(run))

    return start(work, training.log)


def _fork_to_end(training: Any, run: Path) -> int:  # noqa: ANN401
    from forked import forked

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
