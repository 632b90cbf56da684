"""Locks on folders that one process at a time may write to, such as that of a run.

The lock belongs to an open descriptor of the file ``.lock`` in the folder: the system gives it back
when the process ends, however it ends, so that what is left of the file locks nobody out. Children
that are forked close theirs. The file says who holds it.

A folder that many read, such as a cache, is shared, and who tidies it up has to be alone there. A
draft is owned by who writes it, and abandoned once that process is gone.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from cggm.errors import UserError
from cggm.runs.storage.reading import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: dict[Path, int] = {}  # folder to descriptor
_holders: dict[Path, set[int]] = {}  # folder to who took it in this process
_shared: dict[Path, int] = {}  # folder to descriptor, of folders that are read
_numbers = count(1)
_ABANDONED_AFTER = 86_400  # seconds since the last change, where no locks can tell
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def hold(folder: Path, doing: str) -> int:
    """Keep other processes out of a folder until this one ends, or lets it go.

    Several parts of a process may hold it at once; each of them lets it go. Where the file system
    has no locks a line on standard error says so, and it goes on.

    Args:
        folder: An existing folder.
        doing: What this process does there, such as ``a training``, for others to read.

    Returns:
        What :func:`let_go` has to be given.

    Raises:
        UserError: If another process holds it; the message says which.
        OSError: If the lock's file cannot be made.
    """
    place, number = folder.resolve(), next(_numbers)
    if fcntl is not None and place not in _held:
        try:
            _held[place] = _locked(place / LOCK)
            _say_who(_held[place], doing)
        except BlockingIOError as error:
            raise _refusal(folder) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"{folder}: the file system has no locks ({error.strerror}): start nothing else "
                "there until this ends.",
                file=sys.stderr,
                flush=True,
            )
    _holders.setdefault(place, set()).add(number)
    return number


def _locked(file: Path) -> int:
    """The descriptor of the lock's file, locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open(file, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its holder removed meanwhile


def _is_open(file: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    return False


def check_free(folder: Path) -> None:
    """Refuse a folder that another process holds now.

    Raises:
        UserError: If so.
    """
    place = folder.resolve()
    if fcntl is None or place in _held:
        return
    with suppress(OSError):  # no lock was ever there, or it cannot be read
        descriptor = os.open(place / LOCK, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _refusal(folder) from error
        finally:
            os.close(descriptor)


def let_go(folder: Path, number: int) -> None:
    """Give back what :func:`hold` took; nothing where that is so.

    Args:
        folder: The folder.
        number: What :func:`hold` returned.
    """
    place = folder.resolve()
    holders = _holders.get(place, set())
    holders.discard(number)
    if not holders and place in _held:
        with suppress(OSError):
            (place / LOCK).unlink()  # before others can have it
        os.close(_held.pop(place))


def let_go_of_all() -> None:
    """Give back everything that this process holds, as it does when it ends."""
    for place, holders in _holders.items():
        for number in [*holders]:
            let_go(place, number)


@contextmanager
def holding(folder: Path, doing: str) -> Iterator[int | None]:
    """Hold a folder inside of a block, see :func:`hold`.

    Args:
        folder: An existing folder.
        doing: What this process does there.

    Yields:
        The descriptor of the lock, for a child that is to inherit it; ``None`` without locks.
    """
    number = hold(folder, doing)
    try:
        yield _held.get(folder.resolve())
    finally:
        let_go(folder, number)


def share(folder: Path) -> None:
    """Say that this process reads a folder until it ends, so that nobody is :func:`alone` there.

    Any number of processes may. Without locks in the file system nothing happens.

    Args:
        folder: An existing folder, which need not be writable.
    """
    place = folder.resolve()
    if fcntl is None or place in _shared:
        return
    with suppress(OSError):
        # The folder itself: one that is read may lie where no file can be made.
        descriptor = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            raise
        _shared[place] = descriptor


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Keep others from reading a folder for a moment, to remove what nobody needs.

    Args:
        folder: An existing folder.

    Yields:
        Whether that is so; not where another process reads it, see :func:`share`, or without locks.
    """
    place = folder.resolve()
    own = _shared.get(place)
    try:
        descriptor = os.open(place, os.O_RDONLY) if own is None else own
    except OSError:
        yield False
        return
    try:
        yield bool(_taken(descriptor))
    finally:
        if own is None:
            os.close(descriptor)
        elif fcntl is not None:
            with suppress(OSError):
                fcntl.flock(own, fcntl.LOCK_SH)


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Make a folder that is :func:`abandoned` once the block, or this process, has ended.

    Args:
        folder: What is made; it must not exist.

    Raises:
        OSError: If it cannot be made.
    """
    if fcntl is None:  # Windows moves nothing that is open
        folder.mkdir()
        yield
        return
    descriptor = _made(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # forked children have the descriptor, too
        os.close(descriptor)


def _made(folder: Path) -> int:
    """The descriptor of a new folder, locked; another one may take it away before it is."""
    while True:
        folder.mkdir()
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_open(folder, descriptor):
                return descriptor
            os.close(descriptor)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Keep a folder that :func:`owning` made from being anybody's for a moment, to remove it.

    Args:
        path: The folder, or a file, as earlier versions made it.

    Yields:
        Whether it is nobody's. Without locks it is so a day after it was changed last.

    Raises:
        OSError: If it is gone or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        free = _taken(descriptor)
        if free is None:
            free = time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_AFTER
        yield free
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool | None:
    """Whether nobody else has an open file locked, which then is; ``None`` without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _say_who(descriptor: int, doing: str) -> None:
    who = {
        "doing": doing,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with suppress(OSError):  # a full disk must not keep anybody from locking
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)


def _refusal(folder: Path) -> UserError:
    try:
        who = parse_json((folder / LOCK).read_bytes())
        name = f"{who['doing']}, process {who['process']} on {who['host']} since {who['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        name = "another process"
    return UserError(
        f"{folder}: {name} still writes there.", "Wait until it ends, or end it, or choose another."
    )


def _close_in_child() -> None:
    for descriptor in [*_held.values(), *_shared.values()]:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
    _shared.clear()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    # A loader's worker may outlive a training that was killed by a moment.
    os.register_at_fork(after_in_child=_close_in_child)
