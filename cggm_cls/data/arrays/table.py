"""Tables of arrays of one set of samples, read from files that nobody vouches for and checked."""

import re
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cggm.errors import DataError

LAYOUT = (
    "Give a folder with target.npy and an array for each modality, such as ecg.npy, or with "
    "train.npz, valid.npz and test.npz that hold them."
)
LENGTHS = ".lengths"
"""Ending of the array that says how many steps of each sequence are real."""

T = TypeVar("T")

_ABOUT_SAMPLES = ("target", "id", "split", "group")
_LARGEST = 2**36  # bytes that an archive may declare; a compressed one can declare anything
# What numpy raises for headers and contents that are none.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    TypeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class ArrayTable:
    """Arrays of some samples, with one entry for each of them.

    Args:
        where: The folder or archive, for the messages.
        arrays: Name to array, as they were read.
    """

    where: Path
    arrays: Mapping[str, NDArray[Any]]

    @property
    def target(self) -> NDArray[Any]:
        """What is predicted of each sample, ``(N,)``."""
        return self.arrays["target"]

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in alphabetical order."""
        names = [name for name in self.arrays if name not in _ABOUT_SAMPLES]
        return sorted(name for name in names if not name.endswith(LENGTHS))

    def check(self) -> "ArrayTable":
        """Refuse arrays that are not of one set of samples, or of a type that is no feature.

        Returns:
            The table itself.

        Raises:
            DataError: If there is no target or no modality, or an array does not fit.
        """
        if "target" not in self.arrays or not self.modalities:
            found = ", ".join(sorted(self.arrays)) or "none"
            what = f"Expected `target` and at least one modality, but found the arrays {found}."
            raise DataError(str(self.where), None, what, LAYOUT)
        count = self.target.size
        if self.target.shape != (count,) or not count or self.target.dtype.kind not in "biufUS":
            raise self.error("target", "numbers or texts of shape (N,), N > 0", self.target)
        for name, array in self.arrays.items():
            if name in self.modalities:
                self._check_name(name)
                if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or not array.size:
                    raise self.error(name, "numbers of shape (N, D) or (N, T, D)", array)
            elif array.ndim != 1:
                raise self.error(name, "one entry per sample, shape (N,)", array)
            if len(array) != count:
                raise self.error(name, f"{count} samples, as many as `target` has", array)
            if name.endswith(LENGTHS):
                self._check_lengths(name, array)
        return self

    def rows(self, chosen: NDArray[np.int64]) -> "ArrayTable":
        """The same arrays of some of the samples.

        Args:
            chosen: Their places in this table.
        """
        return ArrayTable(self.where, {name: array[chosen] for name, array in self.arrays.items()})

    def ids(self, split: str) -> list[str]:
        """Identifiers of the samples, their numbers in the split where there are none.

        Args:
            split: Name of the split that this table is.
        """
        if "id" in self.arrays:
            return [plain_text(value) for value in self.arrays["id"]]
        return [f"{split}-{number:05d}" for number in range(len(self.target))]

    def error(self, name: str, expected: str, found: NDArray[Any]) -> DataError:
        """A refusal of an array by its type or shape.

        Args:
            name: Of the array.
            expected: What it should have been.
            found: What it is.
        """
        what = f"Expected {expected}, but found {found.dtype} of shape {found.shape}."
        return DataError(f"array {name}", self.where, what, LAYOUT)

    def _check_name(self, name: str) -> None:
        # Encoders are kept in a ModuleDict, which takes neither dots nor its own attributes.
        if not re.fullmatch(r"\w+", name) or hasattr(nn.ModuleDict, name):
            what = f"Expected names of letters, digits and _, but found the modality {name!r}."
            raise DataError(f"array {name}", self.where, what, "Rename the array.")

    def _check_lengths(self, name: str, lengths: NDArray[Any]) -> None:
        of = name.removesuffix(LENGTHS)
        array = self.arrays.get(of)
        if array is None or array.ndim != 3 or lengths.dtype.kind not in "iu":
            raise self.error(name, f"whole numbers beside sequences {of!r} (N, T, D)", lengths)
        if lengths.min() < 0 or lengths.max() > array.shape[1]:
            what = f"Expected lengths from 0 to {array.shape[1]}, the steps of {of!r}, but found "
            what += f"{lengths.min()} to {lengths.max()}."
            raise DataError(f"array {name}", self.where, what, "Correct the lengths.")


def read_archive(file: Path) -> Mapping[str, NDArray[Any]]:
    """All arrays of an archive by their names.

    Args:
        file: As ``numpy.savez`` writes it; no object in it is unpickled.

    Raises:
        DataError: If it is absent or damaged, or declares more than any memory holds.
    """

    def read() -> Mapping[str, NDArray[Any]]:
        with zipfile.ZipFile(file) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > _LARGEST:
            raise ValueError(f"it declares {declared / 2**30:.0f} GiB")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return _readable(file, read)


def read_arrays(folder: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of a folder by their names, mapped into memory.

    Args:
        folder: With files ``<name>.npy``; others are ignored.

    Raises:
        DataError: If there is no such folder, or a file is damaged or holds objects.
    """
    if not folder.is_dir():
        raise DataError(str(folder), None, "Expected a folder, but there is none.", LAYOUT)
    # A mapping cannot be larger than its file, whatever the header declares.
    return {
        file.name.removesuffix(".npy"): _readable(
            file, partial(np.load, file, mmap_mode="r", allow_pickle=False)
        )
        for file in sorted(folder.glob("*.npy"))
    }


def _readable(file: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError as error:
        what = f"Expected {file.name} beside the other splits, but there is no such file."
        raise DataError(str(file.parent), file, what, LAYOUT) from error
    except _UNREADABLE as error:
        what = f"Expected arrays of numbers or text, but the file cannot be read ({error})."
        fix = "Write it again with numpy.save or numpy.savez, without objects."
        raise DataError(str(file.parent), file, what, fix) from error


def plain_text(value: Any) -> str:  # noqa: ANN401
    """A class, a group or an identifier as text.

    Args:
        value: Text, bytes or a number of numpy.
    """
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
