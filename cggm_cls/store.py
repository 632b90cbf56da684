"""A file is converted once; what it became is read ever after, and the file is left alone."""

import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cggm.errors import UserError
from cggm.runs.folder import flush_folder
from cggm_cls.sequences import TaskData
from cggm_cls.stored import AGAIN, Source, is_store, read_store, source_of, write_files

_LEFTOVER_AGE = 3600  # seconds; no file of a store takes as long to write


def open_converted(file: Path, store: Path | None, read: Callable[[Path], TaskData]) -> TaskData:
    """Convert a file on first use; later read what it was converted to, and that alone.

    Args:
        file: The file, which may be gone once it was converted, or the folder of a store.
        store: Folder of the store; ``<file>.converted`` beside the file where ``None``.
        read: Reads the file.

    Returns:
        The splits, mapped into memory.

    Raises:
        DataError: If the file cannot be read, or the store is damaged.
        UserError: If the store cannot be written, or was made from another file.
    """
    if file.is_dir():
        return read_store(file)
    folder = store or file.with_name(f"{file.name}.converted")
    if not is_store(folder):
        _convert(file, folder, read)
    elif file.exists() and not store_matches(folder, file):
        made = source_of(folder)
        what = f"made from another file ({made.name}, {made.size} bytes) than {file} is now."
        raise UserError(f"{folder}: {what}", AGAIN)
    return read_store(folder)


def store_matches(folder: Path, file: Path) -> bool:
    """Whether a store was made from a file, judged by size and time, or else by content.

    A file replaced by one of the same size and modification time, to the nanosecond, goes
    unnoticed.

    Args:
        folder: The store.
        file: The file; read only if its size is the same and its time is not.

    Raises:
        DataError: If the manifest is damaged, or the file cannot be read.
    """
    made, found = source_of(folder), file.stat()
    if found.st_size != made.size:
        return False
    return found.st_mtime_ns == made.modified or Source.of(file).sha256 == made.sha256


def write_store(folder: Path, data: TaskData, source: Source) -> None:
    """Keep the splits of a task in a folder that appears complete or not at all.

    Args:
        folder: Where; absent or empty.
        data: The splits, with one view of each sample.
        source: What they were read from.

    Raises:
        UserError: If the folder holds something, or cannot be written.
    """
    with _draft(folder) as draft:
        _write(draft, data, source)


def _convert(file: Path, folder: Path, read: Callable[[Path], TaskData]) -> None:
    source = Source.of(file)  # before reading: a file that changes meanwhile no longer matches
    with _draft(folder) as draft:
        print(f"converting {file} ({source.size / 1e6:.1f} MB) to {folder}, once", flush=True)
        _write(draft, read(file), source)


def _write(draft: Path, data: TaskData, source: Source) -> None:
    try:
        write_files(draft, data, source)
    except (OSError, SafetensorError) as error:
        what = f"Expected room in {draft.parent} for a copy of {source.name}, but got: {error}."
        raise UserError(what, "Free space, or give another folder with --store.") from error


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of the given one if the block ends well."""
    draft = folder.with_name(f".tmp-{secrets.token_hex(4)}-{folder.name}")
    try:
        _remove_leftovers(folder)
        _check_empty(folder)
        draft.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield draft
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    try:
        flush_folder(draft)
        _check_empty(folder)
        os.rename(draft, folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        what = f"{folder}: expected a new or empty folder, but it holds other files."
        raise UserError(what, "Give another one with --store.")


def _remove_leftovers(folder: Path) -> None:
    """Remove drafts of conversions that were killed."""
    for leftover in folder.parent.glob(f".tmp-*-{glob.escape(folder.name)}"):
        if time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE:
            shutil.rmtree(leftover, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    what = f"{folder}: a converted copy cannot be kept there ({error.strerror})."
    return UserError(what, "Give a folder that can be written with --store.")
