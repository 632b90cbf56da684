"""One case of the slice cache: a safetensors file, written atomically and keyed by content."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from cggm.errors import UserError
from cggm.runs.folder import replacing
from cggm_seg import checks, nifti, preprocessing, streams, volumes
from cggm_seg.cases import Case
from cggm_seg.manifest import check_recorded

Key = dict[str, Any]


def entry_file(folder: Path, case: Case) -> Path:
    """Where the entry of a case lies."""
    return folder / f"{case.id}.safetensors"


def is_current(case: Case, file: Path, recorded: Mapping[Path, str]) -> bool:
    """Whether an entry was made by this code from these files, judged by size and time.

    Contents are not compared: a file replaced by one of the same size and modification time, to
    the nanosecond, goes unnoticed.

    Args:
        case: The case.
        file: Its entry.
        recorded: File to its SHA-256; an entry made from another content is not current.
    """
    key, stamps = _header(file)
    digests = key.get("digests", [])
    try:
        current = key == _key(case, digests) and stamps == _stamps(case)
    except OSError:
        return False
    pairs = zip(_sources(case), digests, strict=False)
    return current and all(recorded.get(source, digest) == digest for source, digest in pairs)


def refresh(case: Case, file: Path, recorded: Mapping[Path, str]) -> None:
    """Makes the entry of a case, or only notes new file times if the contents are the same.

    Args:
        case: The case.
        file: Its entry.
        recorded: File to its SHA-256.

    Raises:
        DataError: If the case cannot be read, or a file has another content than recorded.
        UserError: If the entry cannot be written; an older one is untouched then.
    """
    # Stamps come first: a file that changes meanwhile is then found changed by the next run.
    try:
        stamps = _stamps(case)
        digests = {source: _digest(source) for source in _sources(case)}
    except OSError:
        volumes.read_case(case)  # its error names the file and the remedy
        raise
    for source, digest in digests.items():
        check_recorded(case.id, source, digest, recorded.get(source))
    key = _key(case, list(digests.values()))
    tensors = load_file(file) if _header(file)[0] == key else pack(case)
    _write(file, tensors, {"key": key, "stamps": stamps})


def pack(case: Case) -> dict[str, np.ndarray]:
    """Reads a labelled case and lays it out slice by slice.

    Returns:
        ``images`` int16 ``(Z, M, h, w)`` cropped to the brain, ``label`` uint8 ``(Z, h, w)``,
        ``statistics`` of the stored values ``(M, 2)``, ``scales`` ``(M,)`` that turn these back
        into intensities, ``class_counts`` voxels per slice and class ``(Z, 4)``,
        ``box`` start and stop per axis ``(3, 2)``.

    Raises:
        DataError: If the case cannot be read.
        ValueError: If the case has no label map.
    """
    data = volumes.read_case(case)
    if data.label is None:
        raise ValueError(f"Expected a labelled case, but {case.id} has no label map.")
    box = preprocessing.brain_box(data.images)
    brain = np.ascontiguousarray(data.images[:, *box].transpose(3, 0, 1, 2)).swapaxes(0, 1)
    statistics = preprocessing.intensity_statistics(brain)
    values, scales = preprocessing.to_int16(brain, statistics)
    label = np.ascontiguousarray(data.label[box].transpose(2, 0, 1))
    classes = len(checks.FILE_LABELS[case.naming])
    counts = [np.bincount(plane.ravel(), minlength=classes) for plane in label]
    return {
        "images": np.ascontiguousarray(values.swapaxes(0, 1)),
        "label": label,
        "statistics": statistics / scales[:, None],
        "scales": scales,
        "class_counts": np.stack(counts),
        "box": np.array([(span.start, span.stop) for span in box]),
    }


def _header(file: Path) -> tuple[Key, list[list[int]]]:
    try:
        with safe_open(file, "np") as entry:
            header = json.loads(entry.metadata()["header"])
            return header["key"], header["stamps"]
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):  # no entry of ours
        return {}, []


def _sources(case: Case) -> list[Path]:
    return [*case.images.values(), *([case.label] if case.label else [])]


def _stamps(case: Case) -> list[list[int]]:
    stats = [source.stat() for source in _sources(case)]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _key(case: Case, digests: list[str]) -> Key:
    return {
        "transform": _transform(),
        "modalities": list(case.images),
        "naming": case.naming,
        "digests": digests,
    }


@cache
def _transform() -> str:
    code = [
        inspect.getsource(module) for module in (streams, nifti, checks, volumes, preprocessing)
    ]
    return hashlib.sha256("".join([*code, inspect.getsource(pack)]).encode()).hexdigest()


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: Path, tensors: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    try:
        with replacing(file) as temporary:
            save_file(tensors, temporary, {"header": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(
            f"Expected room for {size} bytes in {file.parent} to cache {file.stem}, "
            f"but got: {error}.",
            "Free space or choose another cache folder; cases that are done are kept.",
        ) from error
