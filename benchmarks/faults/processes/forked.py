"""Work in forks of this process, which stand for processes of their own.

A fork begins with everything imported, some six seconds earlier than a new process, and shares no
memory that is written, no file that is opened and no thread from then on. It must be made before
the parent has any thread: call this from a function that child.py runs, with one thread for torch.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def start(work: Callable[[], int | None], log: Path) -> int:
    """Fork a process, the leader of a group, that works and ends; returns its number.

    Args:
        work: Returns the exit code, or nothing for 0; an error of it is one of the process.
        log: Gets what is said.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        _redirect(log)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a fork; its exit code, or the negated number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(work: Callable[[], int | None], log: Path) -> int:
    """The exit code of work in a fork."""
    return ended(start(work, log))


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
