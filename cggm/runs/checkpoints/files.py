"""The files of checkpoints: where they lie, whether they are whole, and which are kept.

A folder ``epoch-0002-step-00000150`` holds files and ``checkpoint.json``, which has their digests
and its own. Names sort by progress.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cggm.errors import UserError
from cggm.runs.storage import check_form, file_digest, new_folder, parse_json, sweep_drafts

HEADER = "checkpoint.json"
FORMAT = 2
_FORM = {
    "format": int,
    "versions": {"*": str},
    "world_size": int,
    "progress": {
        "epoch": int,
        "iteration": int,
        "score": (int, float, None),
        "fingerprint": {"*": str},
    },
    "files": {"*": str},
    "*": object,
}
_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")

Dump = Callable[[BinaryIO], object]


def folder_name(epoch: int, iteration: int) -> str:
    """Name of a checkpoint's folder.

    Args:
        epoch: Completed epochs.
        iteration: Completed iterations.
    """
    return f"epoch-{epoch:04d}-step-{iteration:08d}"


def find_checkpoints(folder: Path) -> list[Path]:
    """Folders of the checkpoints, oldest first; none where there are none.

    Args:
        folder: Folder of the checkpoints.
    """
    found = [(match, path) for path in folder.glob("epoch-*") if (match := _progress(path))]
    return [path for _, path in sorted(found)]


def publish(target: Path, dumps: Mapping[str, Dump], header: Mapping[str, Any]) -> None:
    """Write a checkpoint that appears in one step, once its content is on the disk.

    Args:
        target: Its folder, which must not exist.
        dumps: Writes each file, by name.
        header: What else its header says.

    Raises:
        FileExistsError: If there is such a checkpoint, which stays as it is.
    """
    _sweep(target.parent)
    with new_folder(target) as draft:
        files = {name: _write(draft / name, dump) for name, dump in dumps.items()}
        (draft / HEADER).write_bytes(_sealed({"format": FORMAT, **header, "files": files}))


def read_header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        path: Its folder.

    Raises:
        UserError: If it is damaged, or written in another format.
    """
    header: dict[str, Any] = {}
    try:
        content = (path / HEADER).read_bytes()
        header = parse_json(content)
        del header["digest"]
        whole = content == _sealed(header)
    except FileNotFoundError:
        raise damaged(path, HEADER, "it is missing") from None
    except (ValueError, AttributeError, TypeError, KeyError):
        whole = False
    if not whole:
        raise damaged(path, HEADER, "it is cut short or altered")
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected a checkpoint of format {FORMAT}, but it has "
            f"{header.get('format', 'none')}.",
            "Use the version of this project that wrote it, or train anew.",
        )
    check_form(header, _FORM, path / HEADER)
    return header


def verified(path: Path, name: str, header: Mapping[str, Any]) -> Path:
    """A file of a checkpoint, once its content is known to be what was written.

    Args:
        path: Folder of the checkpoint.
        name: Of the file.
        header: Of the checkpoint.

    Raises:
        UserError: If it is damaged.
    """
    if not (path / name).is_file():
        raise damaged(path, name, "it is missing")
    if file_digest(path / name) != header["files"].get(name):
        raise damaged(path, name, "it is cut short or altered")
    return path / name


def damaged(path: Path, name: str, why: str) -> UserError:
    """The error for a file of a checkpoint that cannot be used."""
    others = [other.name for other in find_checkpoints(path.parent) if other != path]
    remedy = f"the run then continues from {others[-1]}" if others else "then train anew"
    return UserError(f"{path / name}: damaged checkpoint, {why}.", f"Delete {path}; {remedy}.")


def selection_order(progress: Mapping[str, Any]) -> tuple[float, int]:
    """Order of checkpoints by score, then by age; without a score last."""
    score = progress["score"]
    return (-math.inf if score is None or math.isnan(score) else score, progress["iteration"])


def prune(folder: Path, keep_last: int) -> None:
    """Remove what is neither recent nor the best, and what a killed process left half-written.

    Args:
        folder: Folder of the checkpoints.
        keep_last: How many are recent.
    """
    _sweep(folder)
    paths, orders = find_checkpoints(folder), {}
    for path in paths:
        with suppress(UserError):
            orders[path] = selection_order(read_header(path)["progress"])
    best = max(orders, key=lambda path: orders[path], default=None)
    for path in {*paths} - {*paths[-keep_last:], best}:
        # renamed first, so that none is ever seen in part
        shutil.rmtree(path.rename(path.with_name(f".old-{path.name}")))


def _sweep(folder: Path) -> None:
    sweep_drafts(folder)
    for leftover in folder.glob(".*-epoch-*"):  # renamed to be removed, see prune
        shutil.rmtree(leftover)


def _progress(path: Path) -> tuple[int, int] | None:
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _write(path: Path, dump: Dump) -> str:
    """Write a file and return its digest."""
    try:
        with path.open("wb") as file:
            dump(file)
    except (OSError, RuntimeError) as error:
        # torch.save hides why a write failed, such as a full disk, in the context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        cause.filename = str(path)
        raise cause from None
    return file_digest(path)


def _sealed(header: Mapping[str, Any]) -> bytes:
    """The header as JSON with its own digest."""
    digest = hashlib.sha256(json.dumps(header).encode()).hexdigest()
    return json.dumps({**header, "digest": digest}, indent=2).encode()
