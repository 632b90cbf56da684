"""Cached case: one file, named after the case and the content that it was made from.

Two cohorts whose cases have equal names share a cache folder without sharing a file, and what
a training has begun to read is never replaced by another content.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from cggm.errors import UserError
from cggm.runs import file_digest, parse_json, replacing
from cggm_seg.data import preprocessing, volumes
from cggm_seg.data.cases import Case
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.labels import CLASS_CODES
from cggm_seg.data.manifest import check_recorded

FORMAT = 4
"""Raised by hand whenever the same files would give another cached case; a test holds the two
together. Cases of an earlier format are made again."""

_LARGEST_ERROR = 0.0101  # deviations; to_int16 keeps to a hundredth
_NAME = re.compile(r"(?P<case>.+?)(?:\.(?P<digest>[0-9a-f]{16}))?\.safetensors", re.DOTALL)
_Key = dict[str, Any]


def entries(folder: Path) -> dict[str, list[Path]]:
    """The cached cases of a folder by identifier, each of as many contents as there are."""
    found = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        match = _NAME.fullmatch(name)
        if match and not name.startswith("."):
            found[match["case"]].append(folder / name)
    return dict(found)


def key_of(file: Path) -> _Key:
    """What a cached case was made from: format, modalities, labels and digests of its files.

    Args:
        file: The cached case.

    Returns:
        An empty mapping for a file that is none of ours, or that has another content than its name
        says. Names of earlier versions say nothing.
    """
    key = dict(_header(file).get("key", {}))
    match = _NAME.fullmatch(file.name)
    told = match["digest"] if match else None
    return key if told in (None, _digest(key)) else {}


def is_current(case: Case, file: Path, recorded: Mapping[Path, str]) -> bool:
    """Whether a cached case is of this format and from these files, judged by size and time.

    Contents are not compared: a file replaced by one of the same size and modification time, to
    the nanosecond, goes unnoticed.

    Args:
        case: The case.
        file: Where it is cached.
        recorded: File to its SHA-256; what was made from another content is not current.
    """
    key = key_of(file)
    if key.get("format") != FORMAT:
        return False
    try:
        digests = dict(key["digests"])
        if key != _key(case, digests) or _header(file).get("stamps") != _stamps(case):
            return False
        return all(
            recorded.get(source, digests[part]) == digests[part]
            for part, source in _sources(case).items()
        )
    except (OSError, KeyError, TypeError, ValueError):  # a source is gone, or a header of others
        return False


def refresh(case: Case, folder: Path, recorded: Mapping[Path, str]) -> Path:
    """Caches a case, or only notes new times of its files if their contents are the same.

    Args:
        case: The case.
        folder: Where to.
        recorded: File to its SHA-256.

    Returns:
        The file that it is cached in.

    Raises:
        DataError: If the case cannot be read, or a file has another content than recorded.
        UserError: If the file cannot be written; an older one is untouched then.
    """
    # Stamps come first: a file that changes meanwhile is then found changed by the next run.
    try:
        stamps = _stamps(case)
        digests = {part: file_digest(source) for part, source in _sources(case).items()}
    except OSError:
        volumes.read_case(case)  # its error names the file and the remedy
        raise
    for part, source in _sources(case).items():
        check_recorded(case.id, source, digests[part], recorded.get(source))
    key = _key(case, digests)
    file = folder / f"{case.id}.{_digest(key)}.safetensors"
    old = next((f for f in (file, folder / f"{case.id}.safetensors") if key_of(f) == key), None)
    tensors = load_file(old) if old else pack(case)
    sources = [str(source.resolve()) for source in _sources(case).values()]
    _write(case.id, file, tensors, {"key": key, "stamps": stamps, "sources": sources})
    return file


def is_superseded(case: Case, file: Path) -> bool:
    """Whether a cached case that is not current was made from an earlier content of these files.

    Args:
        case: The case.
        file: One of its :func:`entries`.
    """
    header, match = _header(file), _NAME.fullmatch(file.name)
    if match and match["digest"] is None:  # of a version that replaced it
        return True
    here = {str(source.resolve()) for source in _sources(case).values()}
    sources = header.get("sources")
    return isinstance(sources, list) and not here.isdisjoint(map(str, sources))


def pack(case: Case) -> dict[str, np.ndarray]:
    """Reads a labelled case and lays it out slice by slice.

    Returns:
        ``images`` int16 ``(Z, M, h, w)`` cropped to the brain, ``label`` uint8 ``(Z, h, w)``,
        ``statistics`` of the stored values ``(M, 2)``, ``scales`` and ``offsets`` ``(M,)`` that
        turn these back into intensities, ``class_counts`` voxels per slice and class ``(Z, 4)``,
        ``box`` start and stop per axis ``(3, 2)``, ``content`` SHA-256 of the voxels that were
        read, uint8 ``(32,)``.

    Raises:
        DataError: If the case cannot be read or stored.
        ValueError: If the case has no label map.
    """
    data = volumes.read_case(case)
    if data.label is None:
        raise ValueError(f"Expected a labelled case, but {case.id} has no label map.")
    box = preprocessing.brain_box(data.images)
    # (M, H, W, Z) -> (M, Z, h, w), the order of the statistics' sums, and (Z, M, h, w) on disk.
    brain = np.ascontiguousarray(data.images[:, *box].transpose(3, 0, 1, 2)).swapaxes(0, 1)
    statistics = preprocessing.intensity_statistics(brain)
    values, scales, offsets = preprocessing.to_int16(brain, statistics)
    errors = preprocessing.rounding_errors(brain, statistics, values, scales, offsets)
    _check_errors(case, errors)
    label = np.ascontiguousarray(data.label[box].transpose(2, 0, 1))
    counts = [np.bincount(plane.ravel(), minlength=len(CLASS_CODES)) for plane in label]
    return {
        "images": np.ascontiguousarray(values.swapaxes(0, 1)),
        "label": label,
        "statistics": (statistics - np.stack([offsets, 0 * offsets], axis=1)) / scales[:, None],
        "scales": scales,
        "offsets": offsets,
        "class_counts": np.stack(counts),
        "box": np.array([(span.start, span.stop) for span in box]),
        "content": _content(case, data.images, data.label),
    }


def _content(case: Case, images: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Digest of what the files say: the same however they are compressed, on any machine."""
    digest = hashlib.sha256(repr((list(case.images), images.shape)).encode())
    for volume in (*images, label):
        digest.update(np.ascontiguousarray(volume).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _check_errors(case: Case, errors: np.ndarray) -> None:
    for file, error in zip(case.images.values(), errors, strict=True):
        if error > _LARGEST_ERROR:
            what = (
                f"Expected intensities that 16 bits hold to {_LARGEST_ERROR:g} of their standard "
                f"deviation, but some change by {error:.2g} of it."
            )
            fix = "Clip the image to the range of the brain, or leave the case out."
            raise Finding(Code.RANGE, case.id, file, what, fix)


def _header(file: Path) -> dict[str, Any]:
    """What a cached case says of itself; nothing where the file is none of ours."""
    try:
        with safe_open(file, "np") as cached:
            header = parse_json(cached.metadata()["header"])
            return {**header, "key": dict(header["key"])}
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return {}


def _digest(key: _Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _sources(case: Case) -> dict[str, Path]:
    return {**case.images, **({"seg": case.label} if case.label else {})}


def _stamps(case: Case) -> list[list[int]]:
    stats = [source.stat() for source in _sources(case).values()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _key(case: Case, digests: Mapping[str, str]) -> _Key:
    return {
        "format": FORMAT,
        "modalities": list(case.images),
        "labels": [list(pair) for pair in case.labels.classes],
        "digests": dict(digests),
    }


def _write(
    case_id: str, file: Path, tensors: dict[str, np.ndarray], header: dict[str, Any]
) -> None:
    try:
        with replacing(file, swept=True) as temporary:
            save_file(tensors, temporary, {"header": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(
            f"Expected room for {size} bytes in {file.parent} to cache {case_id}, "
            f"but got: {error}.",
            "Free space or choose another cache folder; cases that are done are kept.",
        ) from error
