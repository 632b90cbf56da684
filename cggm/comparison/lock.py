"""One command at a time in a folder, even where another one was killed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cggm.errors import UserError


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other commands out of a folder until this one ends, and all that inherit its lock.

    A training outlives a command that is killed. It goes on writing to its run folder, where a
    second training must not be started meanwhile.

    Args:
        folder: The folder.

    Yields:
        The descriptor to be inherited.

    Raises:
        UserError: If another process holds the lock.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another command still writes there, or a training that a killed one left.",
            "Wait until it ends, or end it.",
        ) from error
