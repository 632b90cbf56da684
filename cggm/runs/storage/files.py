"""Files and folders that appear whole or not at all, and the digest of their content.

What is being written is a draft beside its place, in a folder ``.tmp-<process>-<random>-<name>`` or
as that folder, until one rename puts it there. A killed process leaves such a draft, which goes
when the same is written again or its folder is swept; one that is under way is known by a lock and
stays.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cggm.errors import UserError
from cggm.runs.storage.locks import abandoned, owning

_PREFIX = ".tmp-"
_DRAFT = re.compile(r"(?:\.tmp-\d+-[0-9a-f]{8}-)+(.*)", re.DOTALL)


@contextmanager
def replacing(path: Path, *, swept: bool = False) -> Iterator[Path]:
    """Replace a file in one step: readers see the old content or the new, even after a power cut.

    The block writes to the temporary path it is given, which has the name of the file. When the
    block raises, that temporary file is removed and the old file stays. What a killed process left
    of an earlier try goes.

    Args:
        path: The file to be written; its folder must exist.
        swept: Whether its folder was swept before, as who writes thousands of files there does
            once; else the folder is listed.

    Yields:
        Where to write.
    """
    within = _DRAFT.fullmatch(path.parent.name)
    if within and within[1] == path.name:  # put into place by whoever made the draft
        yield path
        return
    if not swept:
        sweep_drafts(path.parent, path.name)
    draft = _draft_of(path)
    temporary = draft / path.name  # writers that rename would take a file away from its lock
    try:
        with owning(draft):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_folder(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary), str(draft)):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as a whole, see :func:`replacing`.

    Args:
        path: The file to be written; its folder must exist.
        data: Its content.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write a JSON file as a whole, see :func:`replacing`.

    Args:
        path: The file to be written; its folder must exist.
        value: What ``json.dumps`` takes.
    """
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder in one step: others see nothing of it, or all, even after a power cut.

    When the block raises, nothing is left. What a killed process left of an earlier try goes.

    Args:
        path: The folder, absent or empty; missing parents are made.

    Yields:
        An empty folder to write to, beside it.

    Raises:
        FileExistsError: If the folder holds something, before or after the block; it stays.
    """
    _check_unused(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_drafts(path.parent, path.name)
    draft = _draft_of(path)
    try:
        with owning(draft):
            yield draft
            for part in draft.rglob("*"):
                flush_folder(part) if part.is_dir() else _flush_to_disk(part)
            flush_folder(draft)
            _check_unused(path)
            if os.name == "nt" and path.exists():  # Windows renames over no folder, not even empty
                path.rmdir()
            draft.rename(path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError):
            # Writing to an open file names none, and drafts are not what the user knows.
            file = Path(os.fsdecode(error.filename or draft))
            if file.is_relative_to(draft):
                error.filename = str(path / file.relative_to(draft))
        raise
    flush_folder(path.parent)


def _check_unused(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "expected a new or an empty folder, but it is in use"
        raise FileExistsError(errno.EEXIST, what, str(path))


def is_draft(path: Path) -> bool:
    """Whether a file or folder is something half-written, by its name."""
    return path.name.startswith(_PREFIX)


def sweep_drafts(folder: Path, name: str | None = None) -> None:
    """Remove the drafts that killed processes left in a folder; what cannot be removed stays.

    Args:
        folder: Where they lie; it may be absent.
        name: Of the file or folder that they would have become; anything where ``None``.
    """
    drafts: list[Path] = []
    with suppress(OSError), os.scandir(folder) as listed:
        drafts += (Path(entry) for entry in listed if entry.name.startswith(_PREFIX))
    for draft in drafts:
        found = _DRAFT.fullmatch(draft.name)
        if name is not None and (found is None or found[1] != name):
            continue
        with suppress(OSError), abandoned(draft) as free:
            if free and draft.is_dir():
                shutil.rmtree(draft)
            elif free:
                draft.unlink()


def prepare_json(path: Path) -> None:
    """Make the folder of a JSON file, before the work whose result it is to hold.

    Args:
        path: The file, absent or to be replaced.

    Raises:
        UserError: If there is a file that is none of JSON, which stays.
        OSError: If the folder cannot be made, or the file not be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(64).lstrip()[:1] not in (b"", b"{", b"["):
            raise UserError(f"{path}: expected JSON or no file yet.", "Give another output.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Args:
        path: The file, read to its end.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(path: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system offers it.

    Args:
        path: The folder.
    """
    if os.name == "posix":
        _flush_to_disk(path, os.O_RDONLY)


def _draft_of(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def _flush_to_disk(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
