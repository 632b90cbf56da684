"""The slice cache: one file per case, from which a slice is read in a tenth of a millisecond."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from cggm.errors import DataError, UserError
from cggm.runs import file_digest, map_processes, replacing, sweep_drafts
from cggm_seg.data import preprocessing, volumes
from cggm_seg.data.cases import MODALITIES, Case
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.labels import CLASSES
from cggm_seg.data.manifest import check_recorded
from cggm_seg.data.preprocessing import zscore

logger = logging.getLogger(__name__)

FORMAT = 3
"""Raised by hand whenever the same files would give another cached case; a test holds the two
together. Cases of an earlier format are made again."""

_LARGEST_ERROR = 0.0101  # deviations; to_int16 keeps to a hundredth
_DRAFT_AGE = 3600.0  # seconds; writing a case takes less than one
_Key = dict[str, Any]


def cached_file(folder: Path, case: Case) -> Path:
    """Where the slices of a case lie in a cache folder."""
    return folder / f"{case.id}.safetensors"


def is_current(case: Case, file: Path, recorded: Mapping[Path, str]) -> bool:
    """Whether a cached case is of this format and from these files, judged by size and time.

    Contents are not compared: a file replaced by one of the same size and modification time, to
    the nanosecond, goes unnoticed.

    Args:
        case: The case.
        file: Where it is cached.
        recorded: File to its SHA-256; what was made from another content is not current.
    """
    key, stamps = _header(file)
    if key.get("format") != FORMAT:
        return False
    digests = key["digests"]
    try:
        if key != _key(case, digests) or stamps != _stamps(case):
            return False
    except OSError:
        return False
    return all(
        recorded.get(source, digests[part]) == digests[part]
        for part, source in _sources(case).items()
    )


def refresh(case: Case, file: Path, recorded: Mapping[Path, str]) -> None:
    """Caches a case, or only notes new times of its files if their contents are the same.

    Args:
        case: The case.
        file: Where to.
        recorded: File to its SHA-256.

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
    tensors = load_file(file) if _header(file)[0] == key else pack(case)
    _write(file, tensors, {"key": key, "stamps": stamps})


def pack(case: Case) -> dict[str, np.ndarray]:
    """Reads a labelled case and lays it out slice by slice.

    Returns:
        ``images`` int16 ``(Z, M, h, w)`` cropped to the brain, ``label`` uint8 ``(Z, h, w)``,
        ``statistics`` of the stored values ``(M, 2)``, ``scales`` and ``offsets`` ``(M,)`` that
        turn these back into intensities, ``class_counts`` voxels per slice and class ``(Z, 4)``,
        ``box`` start and stop per axis ``(3, 2)``.

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
    counts = [np.bincount(plane.ravel(), minlength=len(CLASSES)) for plane in label]
    return {
        "images": np.ascontiguousarray(values.swapaxes(0, 1)),
        "label": label,
        "statistics": (statistics - np.stack([offsets, 0 * offsets], axis=1)) / scales[:, None],
        "scales": scales,
        "offsets": offsets,
        "class_counts": np.stack(counts),
        "box": np.array([(span.start, span.stop) for span in box]),
    }


def _check_errors(case: Case, errors: np.ndarray) -> None:
    for file, error in zip(case.images.values(), errors, strict=True):
        if error > _LARGEST_ERROR:
            what = (
                f"Expected intensities that 16 bits hold to {_LARGEST_ERROR:g} of their standard "
                f"deviation, but some change by {error:.2g} of it."
            )
            fix = "Clip the image to the range of the brain, or leave the case out."
            raise Finding(Code.RANGE, case.id, file, what, fix)


def _header(file: Path) -> tuple[_Key, list[list[int]]]:
    """What a cached case was made from; empty for a file that is none of ours."""
    try:
        with safe_open(file, "np") as cached:
            header = json.loads(cached.metadata()["header"])
            return dict(header["key"]), header["stamps"]
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return {}, []


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


@dataclass(frozen=True)
class _CachedCase:
    slices: Any  # safe_open handle: a memory map without an open file
    statistics: np.ndarray
    class_counts: np.ndarray
    modalities: tuple[str, ...]  # that the case has, in the order of the stored images
    digests: dict[str, str]


class SliceCache:
    """Axial slices of cached cases, cropped to the brain.

    Files are mapped into memory when first read, so an instance is small, holds no open file and
    goes to DataLoader workers cheaply.

    Args:
        files: Case identifier to its file, as made by :func:`build_cache`.
        modalities: What is read, in this order; zeros where a case lacks it.
    """

    def __init__(self, files: Mapping[str, Path], modalities: Sequence[str] = MODALITIES) -> None:
        self.case_ids: tuple[str, ...] = tuple(files)
        self.modalities = tuple(modalities)
        self._files = dict(files)
        self._opened: dict[str, _CachedCase] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def only(self, modalities: Sequence[str]) -> "SliceCache":
        """The same cases without other modalities.

        Args:
            modalities: What is read, in this order.
        """
        return SliceCache(self._files, modalities)

    def depth(self, case_id: str) -> int:
        """Number of slices of a case."""
        return len(self._open(case_id).class_counts)

    def class_counts(self, case_id: str) -> np.ndarray:
        """Voxels of background, NCR, ED and ET in each slice, shape ``(Z, 4)``."""
        return self._open(case_id).class_counts

    def digests(self, case_id: str) -> dict[str, str]:
        """SHA-256 of the files that a case was cached from, by modality and ``seg``."""
        return self._open(case_id).digests

    def present(self, case_id: str) -> tuple[bool, ...]:
        """Which of ``modalities`` a case has."""
        return tuple(name in self._open(case_id).modalities for name in self.modalities)

    def read(self, case_id: str, z: int) -> tuple[np.ndarray, np.ndarray]:
        """One slice.

        Args:
            case_id: One of ``case_ids``.
            z: Slice number within the brain, caudal to cranial.

        Returns:
            Z-scores, float32, shape ``(M, h, w)``, 0 in a modality that the case lacks, and
            classes, uint8, shape ``(h, w)``.

        Raises:
            IndexError: If ``z`` lies outside the case.
        """
        case = self._open(case_id)
        if not 0 <= z < len(case.class_counts):
            raise IndexError(f"Expected `z` in [0, {len(case.class_counts)}), but got {z}.")
        images = zscore(case.slices.get_slice("images")[z], case.statistics)
        return self._selected(images, case), case.slices.get_slice("label")[z]

    def _selected(self, images: np.ndarray, case: _CachedCase) -> np.ndarray:
        """The modalities that are read, of the images that a case has."""
        if case.modalities == self.modalities:
            return images
        selected = np.zeros((len(self.modalities), *images.shape[1:]), images.dtype)
        for row, name in enumerate(self.modalities):
            if name in case.modalities:
                selected[row] = images[case.modalities.index(name)]
        return selected

    def _open(self, case_id: str) -> _CachedCase:
        if case_id not in self._opened:
            slices = safe_open(self._files[case_id], "np")
            key = json.loads(slices.metadata()["header"])["key"]
            self._opened[case_id] = _CachedCase(
                slices,
                slices.get_tensor("statistics"),
                slices.get_tensor("class_counts"),
                tuple(key["modalities"]),
                key["digests"],
            )
        return self._opened[case_id]


def build_cache(
    cases: Sequence[Case],
    folder: Path,
    *,
    recorded: Mapping[Path, str] | None = None,
    workers: int = 2,
    strict: bool = False,
    progress: bool = True,
) -> tuple[SliceCache, list[DataError]]:
    """Caches the cases that are missing or stale, and opens the cache.

    A cached case is stale if one of its files or the format changed. Files of the same size and
    modification time count as unchanged, others are compared by content. Every case is one file
    that appears complete or not at all: an interrupted build goes on where it stopped, and several
    processes may build at once.

    Args:
        cases: Labelled cases, each with at least one image.
        folder: Where the files lie, about 30 MB for a BraTS case; made if missing.
        recorded: File to its SHA-256, see :func:`cggm_seg.data.manifest.recorded_digests`; a case
            with a file of another content is bad. Files not recorded are taken as they are.
        workers: Processes, each of about 0.3 GB. They import the main module: a script that
            calls this needs ``if __name__ == "__main__"``.
        strict: Whether the first bad case ends the build.
        progress: Whether to show a bar with the time left, if there is a terminal, and to say
            why cases are cached again.

    Returns:
        The cache of all good cases, and one error for each bad one.

    Raises:
        DataError: If no case is left, or with ``strict`` if one is bad.
        UserError: If a file cannot be written, for example because no space is left.
        ValueError: If two cases share an identifier, or a case has no label map.
    """
    _check_cases(cases)
    _prepare(folder)
    recorded = recorded or {}
    pending = [case for case in cases if not is_current(case, cached_file(folder, case), recorded)]
    if progress:
        _explain(pending, folder)
    attempt = partial(_attempt, folder=folder, recorded=recorded, strict=strict)
    bar = tqdm(total=len(pending), desc="Caching", unit="case", disable=None if progress else True)
    errors: list[DataError] = []
    with bar:
        for error in map_processes(attempt, pending, workers):
            errors += [error] if error else []
            bar.update()
    errors.sort(key=lambda error: error.case)
    failed = {error.case for error in errors}
    files = {case.id: cached_file(folder, case) for case in cases if case.id not in failed}
    if not files:
        first = f" The first: {errors[0]}" if errors else ""
        what = f"Expected at least one good case, but found none among {len(cases)}.{first}"
        raise DataError(str(folder), None, what, "Mend the cases.")
    return SliceCache(files), errors


def _check_cases(cases: Sequence[Case]) -> None:
    if len({case.id for case in cases}) < len(cases):
        raise ValueError("Expected every case once, but some identifiers occur several times.")
    for case in cases:
        if case.label is None:
            raise ValueError(f"Expected labelled cases, but {case.id} has no label map.")


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Only old ones are those of killed builds; another build may be writing the others.
        sweep_drafts(folder, older_than=_DRAFT_AGE)
    except OSError as error:
        what = f"Expected a folder for the cache, but {folder} gives: {error.strerror}."
        raise UserError(what, "Choose another cache folder.") from error


def _explain(pending: Sequence[Case], folder: Path) -> None:
    keys = [_header(cached_file(folder, case))[0] for case in pending]
    older = sum(bool(key) and key.get("format") != FORMAT for key in keys)
    if older:
        cases = "1 case was" if older == 1 else f"{older} cases were"
        logger.warning("%s: %s cached by another version and will be cached again.", folder, cases)


def _attempt(
    case: Case, folder: Path, recorded: Mapping[Path, str], strict: bool
) -> DataError | None:
    try:
        refresh(case, cached_file(folder, case), recorded)
    except DataError as error:
        if strict:
            raise
        return error
    return None
