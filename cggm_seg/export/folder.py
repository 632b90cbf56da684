"""The folder of an export: complete with a digest of each file, or not there."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cggm.errors import UserError
from cggm.runs.folder import flush_folder

DIGESTS = "SHA256SUMS"


def check_unused(folder: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        UserError: If so.
    """
    if folder.exists():
        raise UserError(
            f"{folder}: expected no export there yet, but it exists.",
            "Remove it, or give another --output.",
        )


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Make a folder in one step: others see nothing of it, or all.

    When the block raises, nothing is left. Digests of all files, in the format of ``sha256sum``,
    are added as ``SHA256SUMS``.

    Args:
        folder: The folder, which must not exist.

    Yields:
        An empty folder to write to.

    Raises:
        UserError: If the folder exists.
    """
    check_unused(folder)
    draft = folder.with_name(f".draft-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        lines = [f"{_digest(path)}  {path.relative_to(draft).as_posix()}\n" for path in files]
        (draft / DIGESTS).write_text("".join(lines))
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    flush_folder(folder.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
