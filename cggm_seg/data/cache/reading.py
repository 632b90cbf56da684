"""Slices of cached cases, each of which is read in a tenth of a millisecond."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cggm.errors import DataError
from cggm_seg.data.cache.entries import key_of
from cggm_seg.data.cases import MODALITIES
from cggm_seg.data.preprocessing import zscore


@dataclass(frozen=True)
class _CachedCase:
    slices: Any  # safe_open handle: a memory map without an open file
    statistics: np.ndarray
    class_counts: np.ndarray
    modalities: tuple[str, ...]  # that the case has, in the order of the stored images
    content: str


class SliceCache:
    """Axial slices of cached cases, cropped to the brain.

    Files are mapped into memory when first read, so an instance is small, holds no open file and
    goes to DataLoader workers cheaply.

    Args:
        files: Case identifier to its file, as made by ``build_cache``.
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

    def content(self, case_id: str) -> str:
        """SHA-256 of the voxels that a case was cached from, hexadecimal."""
        return self._open(case_id).content

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
            DataError: If the case's file is gone, or has another content than its name says.
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
            file = self._files[case_id]
            key = key_of(file)
            try:
                slices = safe_open(file, "np")
                self._opened[case_id] = _CachedCase(
                    slices,
                    slices.get_tensor("statistics"),
                    slices.get_tensor("class_counts"),
                    tuple(key["modalities"]),
                    slices.get_tensor("content").tobytes().hex(),
                )
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                what = f"Expected the slices of {case_id}, but they are gone, cut or of others."
                fix = "Start again: they are made anew. Leave the cache alone while it is used."
                raise DataError(case_id, file, what, fix) from error
        return self._opened[case_id]
