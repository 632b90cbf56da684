"""Slices of many cases, read from disk one at a time in a tenth of a millisecond."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tqdm import tqdm

from cggm.errors import DataError, UserError
from cggm_seg.cases import Case
from cggm_seg.entries import entry_file, is_current, refresh
from cggm_seg.parallel import map_processes
from cggm_seg.preprocessing import zscore

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
        recorded: File to its SHA-256, see :func:`cggm_seg.manifest.recorded_digests`; a case with
            a file of another content is bad. Files that are not recorded are taken as they are.
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
