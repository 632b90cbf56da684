"""Phases of commands in which SIGKILL hits them, other than steps, and the commands that follow.

First seconds of a training and of a group of trainings (data that are not converted yet, locks,
folders, configurations), taking and giving back a lock, results and report of a training, the
report command, and the export. What follows is what a person types: the same command again or,
where that refuses the folder, what it advises.
"""

import hashlib
import mmap
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events

from benchmarks.faults.disks.work import untrained_run
from benchmarks.faults.processes.forked import ended, forked, start
from benchmarks.faults.training.small_training import SmallTraining, import_again
from cggm.runs.cli import run
from cggm.runs.storage.files import is_draft
from cggm.runs.storage.locks import hold, let_go
from cggm_cls.training import assembly
from pipelines import export, mosi_train, report

AGAIN = "as if nothing had happened"
_LOCKING = 0.02  # seconds of taking and giving back, over and over


class Marks:
    """When a phase of a fork began and ended, in memory that it shares with its parent."""

    def __init__(self) -> None:
        self._times = memoryview(mmap.mmap(-1, 16)).cast("d")

    def clear(self) -> None:
        """Forget both."""
        self._times[0] = self._times[1] = 0.0

    def begin(self) -> None:
        """The phase begins now."""
        self._times[0] = time.monotonic()

    def end(self) -> None:
        """The phase ends now, if it has not ended before."""
        self._times[1] = self._times[1] or time.monotonic()

    def has_lasted(self, seconds: float) -> bool:
        """Whether it began so long ago."""
        return 0 < self._times[0] <= time.monotonic() - seconds

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._times[1] > 0

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self._times[1] - self._times[0]


@dataclass(frozen=True)
class Phase:
    """What is killed, and what follows.

    Attributes:
        prepare: Puts into a folder what the command finds.
        work: The command on that folder, which notes when the phase begins and ends; a fork's.
        follow: The next command; whether it ends as if nothing had happened.
    """

    prepare: Callable[[Path], None]
    work: Callable[[Path, Marks], int]
    follow: Callable[[Path], bool]


def phases_in(folder: Path) -> dict[str, Phase]:
    """All phases, by what is killed.

    Args:
        folder: For all files.
    """
    training = SmallTraining(folder, curves=True, report=True)
    command = _Beginning(training)
    group = _Beginning(training, "--seeds", "2")
    report_at, export_at = _Report(training), _Export(folder)
    return {
        "first seconds of a training": Phase(command.prepare, command.work, command.follow),
        "first seconds of a group": Phase(group.prepare, group.work, group.follow),
        "locking": Phase(Path.mkdir, _lock_often, _locks),
        "results and report": Phase(report_at.prepare, report_at.work, report_at.follow),
        "report command": Phase(report_at.copy, report_at.write, report_at.rewrite),
        "export": Phase(Path.mkdir, export_at.work, export_at.follow),
    }


def kill(phase: Phase, count: int, folder: Path, marks: Marks) -> dict[str, Any]:
    """Kill commands in a phase, each in a folder of its own, and give the next command.

    Args:
        phase: The phase.
        count: How often.
        folder: For the folders; it is made.
        marks: Memory that forks share.

    Returns:
        Counts, and the seconds of an undisturbed phase.
    """
    folder.mkdir()
    rng, log = np.random.default_rng(0), folder.with_suffix(".txt")
    _start(phase, folder / "whole", marks, log, lambda: marks.ended)
    seconds, counts = marks.seconds, Counter[str]()
    while counts["kills"] < count:
        place = folder / str(counts["tries"])
        instant = float(rng.uniform(0, seconds))
        due = partial(marks.has_lasted, instant)
        counts["tries"] += 1
        if _start(phase, place, marks, log, due) != -signal.SIGKILL:
            continue  # it had ended
        counts["kills"] += 1
        counts["drafts left by the kill"] += any(map(is_draft, place.rglob(".*")))
        counts[AGAIN] += phase.follow(place)
        counts["left at the end"] += any(place.rglob(".*"))
    names = ("kills", "drafts left by the kill", AGAIN, "left at the end")
    return {"phase, s": seconds, **{name: counts[name] for name in names}}


def _start(phase: Phase, place: Path, marks: Marks, log: Path, is_due: Callable[[], bool]) -> int:
    """Start the command in a folder and kill it when it is due; how it ended."""
    phase.prepare(place)
    marks.clear()
    pid = start(lambda: phase.work(place, marks), log)
    while not is_due() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.0005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return ended(pid)


def outcome(folder: Path) -> dict[str, str]:
    """Digests of what must be the same however often a training or a group was killed."""
    kinds = ("results.json", "summary.json", "metrics.jsonl", "balance.jsonl", "model.safetensors")
    files = [file for kind in kinds for file in folder.rglob(kind)]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class _Beginning:
    """A training on data that nobody has converted yet."""

    def __init__(self, training: SmallTraining, *more: str) -> None:
        self._training, self._more, self._log = training, more, training.folder / "begin.txt"
        whole = training.folder / f"whole{len(more)}"
        self.prepare(whole)
        assert forked(lambda: self._train(whole), self._log) == 0, self._log.read_text()
        self._whole = outcome(whole / "run")

    def prepare(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        shutil.copy(self._training.data, place / "mosi.pkl")

    def work(self, place: Path, marks: Marks) -> int:
        run_session = assembly.Session.run

        def run_with_marks(session: Any) -> None:  # noqa: ANN401
            session.trainer.add_event_handler(Events.ITERATION_STARTED, marks.end)
            run_session(session)

        assembly.Session.run = run_with_marks  # type: ignore[method-assign]
        marks.begin()
        return self._train(place)

    def follow(self, place: Path) -> bool:
        code = forked(lambda: self._train(place), self._log)
        if code == 2 and f"--resume {place / 'run'}" in self._log.read_text():
            resume = ["--resume", str(place / "run")]
            code = forked(lambda: run(mosi_train.main, resume), self._log)
        return code == 0 and outcome(place / "run") == self._whole

    def _train(self, place: Path) -> int:
        begin = self._training.beginning(place / "run", place / "mosi.pkl")
        return run(mosi_train.main, [*begin, *self._more])


class _Report:
    """What follows the last step of a training, and the command that writes its report anew."""

    def __init__(self, training: SmallTraining) -> None:
        self._training, self._log = training, training.folder / "report.txt"
        self._trained, self._whole = training.folder / "trained", outcome(training.whole)
        assert forked(lambda: self._train_alone(self._trained), self._log) == 0
        assert not (self._trained / "results.json").exists()

    def _train_alone(self, place: Path) -> int:
        assembly.conclude_sequences = lambda *parts: os._exit(0)
        return self._training.train(place)

    def prepare(self, place: Path) -> None:
        shutil.copytree(self._trained, place)

    def work(self, place: Path, marks: Marks) -> int:
        conclude = assembly.conclude_sequences

        def conclude_with_marks(*parts: Any) -> None:  # noqa: ANN401
            marks.begin()
            conclude(*parts)
            marks.end()

        assembly.conclude_sequences = conclude_with_marks
        return self._training.train(place)

    def follow(self, place: Path) -> bool:
        code = forked(lambda: self._training.train(place), self._log)
        whole = {path.name for path in self._training.whole.iterdir()}
        return (
            code == 0
            and outcome(place) == self._whole
            and whole == {path.name for path in place.iterdir()}
        )

    def copy(self, place: Path) -> None:
        shutil.copytree(self._training.whole, place)
        (place / "report.html").unlink()

    def write(self, place: Path, marks: Marks) -> int:
        marks.begin()
        code = run(report.main, [str(place)])
        marks.end()
        return code

    def rewrite(self, place: Path) -> bool:
        code = forked(lambda: run(report.main, [str(place)]), self._log)
        return code == 0 and (place / "report.html").read_text().rstrip().endswith("</html>")


class _Export:
    """The export of an untrained network."""

    def __init__(self, folder: Path) -> None:
        self._model, self._log = folder / "model", folder / "export.txt"
        network = {"encoder_name": "tu-test_byobnet", "decoder_channels": 8}
        untrained_run(self._model, network=network | {"low_level_channels": 4})
        modules = folder / "modules.txt"

        def export_first() -> None:
            assert self._export(folder) == 0
            modules.write_text("\n".join(sys.modules))

        assert forked(export_first, self._log) == 0, self._log.read_text()
        import_again(modules)

    def work(self, place: Path, marks: Marks) -> int:
        marks.begin()
        code = self._export(place)
        marks.end()
        return code

    def _export(self, place: Path) -> int:
        output = ("--to", "torch", "--output", str(place / "out"))
        return run(export.main, [str(self._model), *output])

    def follow(self, place: Path) -> bool:
        code = forked(lambda: self._export(place), self._log)
        done = code == 2 and "expected no export there yet" in self._log.read_text()
        return (code == 0 or done) and _is_whole(place / "out")


def _is_whole(folder: Path) -> bool:
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    return len(lines) == 3 and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in lines
    )


def _lock_often(place: Path, marks: Marks) -> int:
    marks.begin()
    until = time.monotonic() + _LOCKING
    while True:
        let_go(place, hold(place, "a training"))
        if time.monotonic() > until:
            marks.end()


def _locks(place: Path) -> bool:
    log = place.with_name("locking.txt")
    return forked(lambda: let_go(place, hold(place, "a training")), log) == 0
