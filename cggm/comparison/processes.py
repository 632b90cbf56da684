"""Training scripts as processes that share the seconds which their imports take."""

import os
import runpy
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, reduction, resource_tracker, set_start_method
from pathlib import Path
from threading import Lock
from typing import Any

from cggm.runs import ERROR_FILE

_CONTEXT = get_context("forkserver")
_ONE_AT_A_TIME = Lock()  # starting a process looks at all others, too


def share_imports(modules: Sequence[str], *, threads: int) -> None:
    """Import once what scripts import, in a server that is forked for each; no thread runs in it.

    The memory of the imports counts in each process. To be called in the main thread, before the
    first script.

    Args:
        modules: Their names; what is not installed is left out.
        threads: That each process computes with.
    """
    _CONTEXT.set_forkserver_preload([*modules])
    resource_tracker.ensure_running()  # it lets interrupts through once it has started
    with _started_with(threads):
        forkserver.ensure_running()


class Script:
    """A Python script that runs.

    Args:
        file: The script.
        arguments: Its command line.
        log: File that its output is appended to.
        inherited: Descriptor that it keeps open, if any.
        error_file: File in which it leaves the error that it ends with, see
            ``read_reported_error``.
    """

    def __init__(
        self,
        file: Path,
        arguments: Sequence[str],
        log: Path,
        *,
        inherited: int | None,
        error_file: Path,
    ) -> None:
        lock = None if inherited is None else _Descriptor(inherited)
        self._process = _CONTEXT.Process(target=_run, args=(file, arguments, log, error_file, lock))
        self._asked_to_end = False
        with _ONE_AT_A_TIME:
            self._process.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, negative after a signal; ``None`` while it runs."""
        with _ONE_AT_A_TIME:
            return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end, once: a second signal would cut short what it does to end well."""
        if not self._asked_to_end:
            self._asked_to_end = True
            self._process.terminate()


class _Descriptor:
    """A descriptor that is duplicated into the process which gets this."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._number),)


def _received(duplicate: Any) -> int:  # noqa: ANN401
    descriptor: int = duplicate.detach()
    return descriptor


def _run(
    file: Path, arguments: Sequence[str], log: Path, error_file: Path, _lock: int | None
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    sys.argv = [str(file), *arguments]
    sys.path.insert(0, str(file.parent))  # as for a script started by hand
    os.environ[ERROR_FILE] = str(error_file)
    set_start_method(None, force=True)  # loader workers are those of a script started by hand
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    runpy.run_path(str(file), run_name="__main__")


@contextmanager
def _started_with(threads: int) -> Iterator[None]:
    """What a process that is started here gets: a number of threads, and no interrupt so far.

    Libraries read the number as they are loaded. Ctrl-C in the midst of imports would end in a
    traceback; scripts let it through once they run.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {} if before is None else {"OMP_NUM_THREADS": before}
