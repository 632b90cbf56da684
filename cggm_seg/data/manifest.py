"""The manifest of verified data: one JSON line per file in which nothing was found."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cggm.errors import UserError
from cggm.runs import NUMBER, check_form, parse_json, write_atomically
from cggm_seg.data.findings import Code, Finding

FOLDER = ".verified"
"""Where the manifest lies in a data folder, unless told otherwise."""

_NAME = "manifest.jsonl"


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file.

    Attributes:
        path: The file, relative to the data folder, with ``/``.
        size: Bytes.
        mtime_ns: Modification time in nanoseconds.
        sha256: Of the file's bytes.
        case: Identifier of the case.
        modality: ``flair``, ``t1ce``, ``t1``, ``t2`` or ``seg``.
        shape: Voxels per axis.
        spacing: Size of a voxel in mm.
        orientation: Where the axes lead, ``LPS`` for BraTS.
        dtype: Type of the stored voxels.
        voxels: Digest of the voxels, of every 27th in a large image; empty if all are zero.
        statistics: Statistics that tell modalities apart, see
            :mod:`cggm_seg.verification.modalities`; empty for a label map.
        format: Version of the checks that found nothing, see
            :data:`cggm_seg.verification.case.FORMAT`; 0 for records of before there were versions.
        has_error: Whether an error was found in the file, so that it is to be read again.
        classes: Classes 1 to 3 that a label map holds, ascending; empty for an image.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    case: str
    modality: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    voxels: str
    statistics: list[float | None]
    format: int
    has_error: bool = False
    classes: list[int] = field(default_factory=list)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self), allow_nan=False)


def manifest_file(data: Path, output: Path | None = None) -> Path:
    """The manifest of a data folder, in `output` where that is given."""
    return (output or data / FOLDER) / _NAME


def read_manifest(file: Path) -> dict[str, FileRecord]:
    """The records of a manifest by path, those of an interrupted verification included.

    Raises:
        UserError: If there is something else in the file; where there is none, there is no record.
    """
    try:
        records = [_record(line, file) for line in _lines(file)]
    except (ValueError, TypeError, UserError) as error:
        found = str(error.what if isinstance(error, UserError) else error).rstrip(".")
        raise UserError(
            f"Expected the records of a verification in {file}, but got: {found}.",
            "Delete the file and verify the data again.",
        ) from error
    for line in _lines(_journal(file)):
        with suppress(ValueError, TypeError, UserError):  # a crash may have cut it short
            records.append(_record(line, file))
    return {record.path: record for record in records}


def write_manifest(file: Path, records: Iterable[FileRecord]) -> None:
    """Replaces a manifest, and drops what an interrupted verification left."""
    lines = [f"{record.to_json()}\n" for record in sorted(records, key=lambda item: item.path)]
    write_atomically(file, "".join(lines).encode())
    _journal(file).unlink(missing_ok=True)


def append_records(file: Path, records: Iterable[FileRecord]) -> None:
    """Keeps records until :func:`write_manifest`, through a crash as well."""
    text = "".join(f"\n{record.to_json()}" for record in records)
    with open(_journal(file), "a", encoding="utf-8") as journal:
        journal.write(text + "\n")


def recorded_digests(data: Path, file: Path | None = None) -> dict[Path, str]:
    """File to SHA-256, as the manifest of a data folder records them; none without a manifest.

    Args:
        data: The data folder, as given to ``find_cases``.
        file: The manifest, or its folder, where it does not lie in the data folder.

    Raises:
        UserError: If a line of the manifest is no record, or ``file`` does not exist.
    """
    if file is not None and file.is_dir():
        file = manifest_file(data, file)
    if file is not None and not file.is_file():
        raise UserError(f"Expected a manifest, but {file} is no file.", "Verify the data first.")
    records = read_manifest(file or manifest_file(data))
    return {data / path: record.sha256 for path, record in records.items()}


def check_recorded(case_id: str, file: Path, digest: str, recorded: str | None) -> None:
    """Refuses a file whose content is not the recorded one.

    Args:
        case_id: Named in errors.
        file: The file.
        digest: SHA-256 of its content.
        recorded: What it should be; ``None`` accepts any.

    Raises:
        Finding: If the two differ.
    """
    if recorded in (None, digest):
        return
    what = f"Expected the content that the manifest records, SHA-256 {recorded}, but got {digest}."
    fix = "Copy the file again, or delete its line from the manifest if the change is wanted."
    raise Finding(Code.CHANGED, case_id, file, what, fix)


def _journal(file: Path) -> Path:
    return file.with_suffix(".partial")


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except FileNotFoundError:
        return []


# Names of fields in manifests that were written before records had a format number.
_RENAMED = {"looks": "statistics", "suspect": "has_error"}


_FORM = {
    "path": str,
    "size": int,
    "mtime_ns": int,
    "sha256": str,
    "case": str,
    "modality": str,
    "shape": [int],
    "spacing": [float],
    "orientation": str,
    "dtype": str,
    "voxels": str,
    "statistics": [NUMBER],
    "format": int,
    "has_error?": bool,
    "classes?": [int],
}


def _record(line: str, file: Path) -> FileRecord:
    content: dict[str, Any] = dict(parse_json(line))
    values = {_RENAMED.get(name, name): value for name, value in content.items()}
    if values.pop("checks", None) is not None:
        values["format"] = 0  # older than any check: read again, but its SHA-256 stays expected
    check_form(values, _FORM, Path(file.name))
    shape, spacing = tuple(values["shape"]), tuple(values["spacing"])
    return FileRecord(**{**values, "shape": shape, "spacing": spacing})
