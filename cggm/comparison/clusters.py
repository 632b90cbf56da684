"""Trainings of a comparison as jobs of an array, which submitit hands to a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cggm.comparison.plan import JobOptions, PlannedRun
from cggm.comparison.records import Outcome, RecordStore
from cggm.comparison.trainings import ComparisonProgress, train
from cggm.errors import UserError
from cggm.runs import (
    ERROR_FILE,
    NUMBER,
    JsonLines,
    check_form,
    read_json,
    read_jsonl,
    read_reported_error,
    write_json,
)

if TYPE_CHECKING:
    import submitit

SLURM, DEBUG = "slurm", "submitit-debug"
_JOB = {"task": str, "method": str, "seed": int, "job": str}
_ENDING = {"code": int, "seconds": NUMBER, "peak_mb": NUMBER, "resumed": bool}
_SIGNAL = "USR1"  # before the time limit and on preemption: a training saves and leaves
_QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_POLL = 5.0
_ALWAYS = 10_000  # a training may be cut by the time limit as often as it takes


class Job:
    """One training as a job; called where it runs.

    Args:
        run: The training.
        output: Folder of the comparison, an absolute path.
        threads: That it computes with.
    """

    def __init__(self, run: PlannedRun, output: Path, threads: int) -> None:
        self.run, self.output, self.threads = run, output, threads
        self._script: _Script | None = None

    def __call__(self) -> None:
        """Train and leave how it ended beside the run's folder."""
        ending = _ending_of(self.run, self.output)
        ending.unlink(missing_ok=True)
        outcome = train(self.run, self.output, self._start)
        told = {key: value for key, value in asdict(outcome).items() if key in _ENDING}
        write_json(ending, told)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Let the training save and end; what submitit calls before it queues the job again."""
        import submitit

        if self._script is not None:
            self._script.save_and_end()
        return submitit.helpers.DelayedSubmission(Job(self.run, self.output, self.threads))

    def _start(self, *told: Any, **keywords: Any) -> "_Script":  # noqa: ANN401
        self._script = _Script(*told, threads=self.threads, **keywords)
        return self._script


class _Script:
    """A script in a process of its own, as one that is started by hand."""

    def __init__(
        self, file: Path, arguments: Sequence[str], log: Path, *, threads: int, error_file: Path
    ) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), ERROR_FILE: str(error_file)}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(file), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def save_and_end(self) -> None:
        """The signal may have come to it as well; a second one changes nothing."""
        self._process.send_signal(getattr(signal, f"SIG{_SIGNAL}"))
        self._process.wait()


class ClusterQueue:
    """Trainings that a cluster runs; whoever starts the command next gathers what ended meanwhile.

    A training whose job waits or runs is not handed in again. One that was cut, by its time limit,
    by preemption or with its node, goes on from its last checkpoint as soon as the cluster runs its
    job again. One whose job is gone (``scancel``, no memory) is handed in by the next command and
    goes on, too. Interrupting the command leaves the jobs alone.

    Args:
        store: What trainings came to.
        launcher: ``"slurm"``, or ``"submitit-debug"``: one job after another, in this process.
        options: What each job gets.
        progress: Told what ends, and how many jobs wait and run.
        most: Jobs that may run at once; all where ``None``.

    Raises:
        UserError: If submitit is not installed, or the machine has no SLURM.
    """

    def __init__(
        self,
        store: RecordStore,
        launcher: str,
        options: JobOptions,
        progress: ComparisonProgress,
        *,
        most: int | None = None,
    ) -> None:
        self.store, self.options, self.progress, self.most = store, options, progress, most
        self._output = store.output.resolve()
        self._executor = _executor(self._output / "jobs", launcher)
        self._waiting: list[submitit.Job[None]] = []  # of the debugging launcher, in this process
        self._on_slurm = launcher != DEBUG

    def run(self, runs: Sequence[PlannedRun]) -> list[Outcome]:
        """Hand in what has no job, and wait until all jobs are over.

        Args:
            runs: All trainings of the comparison.

        Returns:
            Those that failed.
        """
        states, jobs = self._look(), self._jobs()
        waiting: dict[PlannedRun, str] = {}
        absent: list[PlannedRun] = []
        for run in self.store.pending(runs):
            if (job := jobs.get(run.key)) in states:
                waiting[run] = str(job)
            elif (outcome := self._ended(run)) is None or outcome.failed:
                absent.append(run)
            else:
                self._keep(outcome, [], runs)
        waiting |= self._hand_in(self.store.pending(absent))
        return self._wait(waiting, runs)

    def _hand_in(self, runs: Sequence[PlannedRun]) -> dict[PlannedRun, str]:
        """Jobs of some trainings, by SLURM's number.

        The first training of a task may write the demo data, or convert the user's; the others wait
        for it.
        """
        begun = {record.task for record in self.store.records()}
        new = [run for run in runs if run.task.name not in begun]
        first = [*{run.task.name: run for run in reversed(new)}.values()]
        rest = [run for run in runs if run not in first]
        numbers: dict[PlannedRun, str] = {}
        for batch in (first, rest):
            if batch:
                behind = ":".join(dict.fromkeys(n.partition("_")[0] for n in numbers.values()))
                numbers |= self._submit(batch, behind)
        return numbers

    def _submit(self, runs: Sequence[PlannedRun], behind: str) -> dict[PlannedRun, str]:
        special: dict[str, Any] = {"slurm_array_parallelism": self.most or len(runs)}
        if behind:
            special["slurm_additional_parameters"] = {"dependency": f"afterany:{behind}"}
        self._executor.update_parameters(**self.options.parameters, **special)
        told = [Job(run, self._output, self.options.cpus) for run in runs]
        try:
            submitted = self._executor.submit_array(told)
        except Exception as error:  # submitit's FailedJobError, and what SLURM made it say
            raise UserError(
                f"SLURM refused the jobs: {_last_line(error)}", "Correct the options --cluster."
            ) from error
        self._waiting += [] if self._on_slurm else submitted
        numbers = dict(zip(runs, (job.job_id for job in submitted), strict=True))
        with JsonLines(self._output / "jobs.jsonl") as lines:
            for run, number in numbers.items():
                lines.write(dict(zip(_JOB, (*run.key, number), strict=True)))
        return numbers

    def _wait(self, waiting: dict[PlannedRun, str], runs: Sequence[PlannedRun]) -> list[Outcome]:
        failed: list[Outcome] = []
        shown: tuple[object, ...] = ()
        gone: set[PlannedRun] = set()
        while waiting:
            states = self._look()
            for run in [run for run, job in waiting.items() if job not in states]:
                outcome = self._ended(run)
                if outcome is None and run not in gone:  # a shared folder may be behind
                    gone.add(run)
                    continue
                del waiting[run]
                self._keep(outcome or _killed(run, self._output), failed, runs)
            told = [states[job] for job in waiting.values() if job in states]
            if (now := (sorted(told), self._over(runs, failed))) != shown and waiting:
                self.progress.count(told, now[1], len(runs))
                shown = now
            if waiting and self._on_slurm:
                time.sleep(_POLL)
        return failed

    def _keep(self, outcome: Outcome, failed: list[Outcome], runs: Sequence[PlannedRun]) -> None:
        if outcome.failed:
            failed.append(outcome)
        self.store.keep(outcome)
        _ending_of(outcome.run, self._output).unlink(missing_ok=True)
        self.progress.show(outcome, self._over(runs, failed), len(runs))

    def _over(self, runs: Sequence[PlannedRun], failed: Sequence[Outcome]) -> int:
        return len(runs) - len(self.store.pending(runs)) + len(failed)

    def _look(self) -> Mapping[str, str]:
        """Jobs that wait or run, ``queued`` or ``running`` each."""
        if self._on_slurm:
            return _slurm_jobs()
        if self._waiting:
            self._waiting.pop(0).wait()  # which runs it
        return {job.job_id: "queued" for job in self._waiting}

    def _jobs(self) -> dict[tuple[str, str, int], str]:
        """The last job of each training that ever had one."""
        file = self._output / "jobs.jsonl"
        lines = read_jsonl(file) if file.exists() else []
        for number, line in enumerate(lines, 1):
            check_form(line, _JOB, file, f"line {number}")
        return {(row["task"], row["method"], row["seed"]): row["job"] for row in lines}

    def _ended(self, run: PlannedRun) -> Outcome | None:
        """How a training ended, as its job left it."""
        file = _ending_of(run, self._output)
        if not file.exists():
            return None
        told = read_json(file)
        check_form(told, _ENDING, file)
        log = run.log(self._output)
        error = read_reported_error(log.with_suffix(".error.json")) if told["code"] else None
        return Outcome(run, error=error, log=log, **told)


def _ending_of(run: PlannedRun, output: Path) -> Path:
    return run.log(output).with_suffix(".ended.json")


def _killed(run: PlannedRun, output: Path) -> Outcome:
    error = UserError(
        "Its job ended without a word: it was canceled, or its node or its memory was lost.",
        f"See {output / 'jobs'}.",
    )
    return Outcome(run, -signal.SIGKILL, 0.0, None, error, True, run.log(output))


def _executor(folder: Path, launcher: str) -> "submitit.AutoExecutor":
    try:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = _SIGNAL  # which jobs inherit
        import submitit
    except ModuleNotFoundError as error:
        raise UserError(
            f"--launcher {launcher} needs the package submitit.", 'pip install "cggm[cluster]"'
        ) from error
    if launcher == SLURM and shutil.which("sbatch") is None:
        raise UserError(
            "Expected SLURM's commands, but sbatch is not there.",
            "Start this where jobs are handed in, or leave --launcher out.",
        )
    cluster = SLURM if launcher == SLURM else "debug"
    return submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=_ALWAYS)


def _slurm_jobs() -> dict[str, str]:
    """The user's jobs by number, ``queued`` or ``running``.

    Not by ``sacct``, which submitit asks: it needs a database that not every cluster has.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    while True:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if not found.returncode:
            break
        time.sleep(_POLL)  # a controller that is busy or starts again
    rows = [line.split() for line in found.stdout.splitlines()]
    return {job: "queued" if state in _QUEUED else "running" for job, state in rows}


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
