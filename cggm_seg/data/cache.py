"""Slices of many cases, read from disk one at a time in a tenth of a millisecond."""

import hashlib
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from cggm.errors import DataError, UserError
from cggm.runs import replacing
from cggm_seg.data import checks, labels, nifti, preprocessing, volumes
from cggm_seg.data import nifti as streams
from cggm_seg.data.cases import Case
from cggm_seg.data.manifest import check_recorded
from cggm_seg.data.parallel import map_processes
from cggm_seg.data.preprocessing import zscore

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
    classes = len(labels.FILE_LABELS[case.naming])
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
    code = [inspect.getsource(m) for m in (streams, nifti, checks, labels, volumes, preprocessing)]
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


_LEFTOVER_AGE = 3600  # seconds; no write takes as long


@dataclass(frozen=True)
class _Entry:
    slices: Any  # safe_open handle: a memory map without an open file
    statistics: np.ndarray
    class_counts: np.ndarray


class SliceCache:
    """Axial slices of cached cases, cropped to the brain.

    Files are mapped into memory when first read, so an instance is small, holds no open file and
    goes to DataLoader workers cheaply.

    Args:
        files: Case identifier to its entry, as made by :func:`build_cache`.
        channels: Positions of the modalities that are read, in order; all of them if ``None``.
    """

    def __init__(self, files: Mapping[str, Path], channels: Sequence[int] | None = None) -> None:
        self.case_ids: tuple[str, ...] = tuple(files)
        self._files = dict(files)
        self._channels = slice(None) if channels is None else list(channels)
        self._entries: dict[str, _Entry] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": {}}

    def only(self, channels: Sequence[int]) -> "SliceCache":
        """The same cases without the other modalities."""
        return SliceCache(self._files, channels)

    def depth(self, case_id: str) -> int:
        """Number of slices of a case."""
        return len(self._entry(case_id).class_counts)

    def class_counts(self, case_id: str) -> np.ndarray:
        """Voxels of background, NCR, ED and ET in each slice, shape ``(Z, 4)``."""
        return self._entry(case_id).class_counts

    def read(self, case_id: str, z: int) -> tuple[np.ndarray, np.ndarray]:
        """One slice.

        Args:
            case_id: One of ``case_ids``.
            z: Slice number within the brain, caudal to cranial.

        Returns:
            Z-scores, float32, shape ``(M, h, w)``, and classes, uint8, shape ``(h, w)``.

        Raises:
            IndexError: If ``z`` lies outside the case.
        """
        entry = self._entry(case_id)
        if not 0 <= z < len(entry.class_counts):
            raise IndexError(f"Expected `z` in [0, {len(entry.class_counts)}), but got {z}.")
        images = entry.slices.get_slice("images")[z]
        return zscore(images, entry.statistics)[self._channels], entry.slices.get_slice("label")[z]

    def _entry(self, case_id: str) -> _Entry:
        if case_id not in self._entries:
            slices = safe_open(self._files[case_id], "np")
            tensors = (slices.get_tensor(name) for name in ("statistics", "class_counts"))
            self._entries[case_id] = _Entry(slices, *tensors)
        return self._entries[case_id]


def build_cache(
    cases: Sequence[Case],
    folder: Path,
    *,
    recorded: Mapping[Path, str] | None = None,
    workers: int = 2,
    strict: bool = False,
    progress: bool = True,
) -> tuple[SliceCache, list[DataError]]:
    """Makes the entries that are missing or stale, and opens the cache.

    An entry is stale if a file of its case or the code that made it changed. Files of the same
    size and modification time count as unchanged, others are compared by content. Every entry is
    one file that appears complete or not at all: an interrupted build goes on where it stopped,
    and several processes may build at once.

    Args:
        cases: Labelled cases with the same modalities.
        folder: Where the entries lie, about 30 MB for a BraTS case; made if missing.
        recorded: File to its SHA-256, see :func:`cggm_seg.data.manifest.recorded_digests`; a case
            with a file of another content is bad. Files not recorded are taken as they are.
        workers: Processes, each of about 0.3 GB. They import the main module: a script that
            calls this needs ``if __name__ == "__main__"``.
        strict: Whether the first bad case ends the build.
        progress: Whether to show a bar with the time left, if there is a terminal.

    Returns:
        The cache of all good cases, and one error for each bad one.

    Raises:
        DataError: If no case is left, or with ``strict`` if one is bad.
        UserError: If an entry cannot be written, for example because no space is left.
        ValueError: If two cases share an identifier, a case has no label map, or the modalities
            of two cases differ.
    """
    _check_alike(cases)
    _prepare(folder)
    recorded = recorded or {}
    pending = [case for case in cases if not is_current(case, entry_file(folder, case), recorded)]
    attempt = partial(_attempt, folder=folder, recorded=recorded, strict=strict)
    bar = tqdm(total=len(pending), desc="Caching", unit="case", disable=None if progress else True)
    errors: list[DataError] = []
    with bar:
        for error in map_processes(attempt, pending, workers):
            errors += [error] if error else []
            bar.update()
    errors.sort(key=lambda error: error.case)
    failed = {error.case for error in errors}
    files = {case.id: entry_file(folder, case) for case in cases if case.id not in failed}
    if not files:
        first = f" The first: {errors[0]}" if errors else ""
        what = f"Expected at least one good case, but found none among {len(cases)}.{first}"
        raise DataError(str(folder), None, what, "Mend the cases.")
    return SliceCache(files), errors


def _check_alike(cases: Sequence[Case]) -> None:
    if len({case.id for case in cases}) < len(cases):
        raise ValueError("Expected every case once, but some identifiers occur several times.")
    for case in cases:
        if case.label is None:
            raise ValueError(f"Expected labelled cases, but {case.id} has no label map.")
        if tuple(case.images) != tuple(cases[0].images):
            raise ValueError(
                f"Expected the modalities {tuple(cases[0].images)} in every case, "
                f"but {case.id} has {tuple(case.images)}."
            )


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):  # of builds that were killed
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE:
                leftover.unlink(missing_ok=True)
    except FileNotFoundError:  # finished by another build meanwhile
        return
    except OSError as error:
        what = f"Expected a folder for the cache, but {folder} gives: {error.strerror}."
        raise UserError(what, "Choose another cache folder.") from error


def _attempt(
    case: Case, folder: Path, recorded: Mapping[Path, str], strict: bool
) -> DataError | None:
    try:
        refresh(case, entry_file(folder, case), recorded)
    except DataError as error:
        if strict:
            raise
        return error
    return None
