"""Folders of simulated content, and the file that tells them from real ones."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cggm.errors import UserError
from cggm.runs.folder import write_atomically

_MARKER = "simulated.json"


def mark_simulated(folder: Path, settings: Mapping[str, object]) -> None:
    """Declare that nothing in a folder was measured or trained.

    Args:
        folder: An existing folder.
        settings: What its content was generated from, JSON values.
    """
    write_atomically(folder / _MARKER, (json.dumps(settings, indent=2) + "\n").encode())


def is_simulated(folder: Path) -> bool:
    """Whether a folder declares itself simulated."""
    return (folder / _MARKER).is_file()


@contextmanager
def simulated_folder(folder: Path, settings: Mapping[str, object]) -> Iterator[Path | None]:
    """Write a folder of simulated content whole or not at all.

    Args:
        folder: Absent, empty, or already simulated from the same settings.
        settings: What the content is generated from, JSON values.

    Yields:
        Where to write; ``None`` if the folder is already there.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    if _has_settings(folder, settings):
        yield None
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"Expected {folder} to be empty or simulated from the same settings, "
            "but found other files.",
            "Choose another folder, or delete this one.",
        )
    scratch = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        mark_simulated(scratch, settings)
        scratch.replace(folder)
    except OSError as error:
        what = f"Expected to write simulated data to {folder}, but got: {error.strerror}."
        raise UserError(what, "Free space or choose another folder.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _has_settings(folder: Path, settings: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads((folder / _MARKER).read_text("utf-8")) == settings)
    except (OSError, ValueError):
        return False
