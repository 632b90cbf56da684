"""Table of arrays about one set of samples, one entry for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError
from cggm_cls.data.arrays.description import DESCRIPTION, LAYOUT, SHARES, Kind


@dataclass(frozen=True)
class ArrayModality:
    """The arrays of one modality.

    Args:
        where: Its file, for the messages.
        values: Rows of features ``(N, D)``, or padded sequences ``(N, T, D)``.
        mask: Which steps are real, ``(N, T)``, T being 1 for rows; all where ``None``.
        columns: Names of the features, where they are known.
        steps: Equal parts that the features of a row are cut into, as steps of a sequence.
    """

    where: Path
    values: NDArray[Any]
    mask: NDArray[np.bool_] | None = None
    columns: tuple[str, ...] = ()
    steps: int = 1

    def chosen(self, rows: NDArray[np.int64]) -> "ArrayModality":
        """The same for some of the samples.

        Args:
            rows: Their places.
        """
        return replace(
            self, values=self.values[rows], mask=None if self.mask is None else self.mask[rows]
        )


@dataclass(frozen=True)
class ArrayTable:
    """What is known of N samples.

    Args:
        where: The folder or file, for the messages.
        modalities: Their arrays by name, in the order of the network.
        target: What is predicted, ``(N,)``: numbers, texts or booleans.
        kind: Whether these are classes or numbers; judged by their type where ``None``.
        ids: Identifier of each sample; by their row where ``None``.
        split: Name of the split of each sample, ``(N,)``; to be drawn where ``None``.
        group: Whose samples stay in one split, ``(N,)``.
        shares: Of the samples, or groups, for validation and test, where splits are drawn.
        sample: What a sample is called that has no identifier.
        notes: What the user ought to know.
        files: Where target, split and group come from, for the messages.
    """

    where: Path
    modalities: Mapping[str, ArrayModality]
    target: NDArray[Any]
    kind: Kind | None = None
    ids: Sequence[str] | None = None
    split: NDArray[Any] | None = None
    group: NDArray[Any] | None = None
    shares: Mapping[str, Fraction] = field(default_factory=lambda: SHARES)
    sample: str = "sample"
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    def refusal(self, name: str, what: str, fix: str) -> DataError:
        """A refusal of target, split or group, with the file that it comes from.

        Args:
            name: Which of them.
            what: See :class:`cggm.errors.DataError`.
            fix: See there.
        """
        return DataError(f"array {name}", self.files.get(name, self.where), what, fix)

    def name(self, row: int) -> str:
        """Identifier of a sample.

        Args:
            row: Its place.
        """
        return self.ids[row] if self.ids is not None else f"{self.sample}-{row:04d}"

    def chosen(self, rows: NDArray[np.int64]) -> "ArrayTable":
        """The same for some of the samples, which keep their identifiers.

        Args:
            rows: Their places.
        """
        return replace(
            self,
            modalities={name: m.chosen(rows) for name, m in self.modalities.items()},
            target=self.target[rows],
            ids=[self.name(row) for row in rows],
            split=None if self.split is None else self.split[rows],
            group=None if self.group is None else self.group[rows],
        )


def unfit(name: str, where: Path, expected: str, found: NDArray[Any]) -> DataError:
    """A refusal of an array by its type or shape.

    Args:
        name: Of the array.
        where: Its file.
        expected: What it should have been.
        found: What it is.
    """
    kind = "text" if found.dtype.kind == "O" else found.dtype
    what = f"Expected {expected}, but found {kind} of shape {found.shape}."
    fix = f"Write it in that form, or say in {DESCRIPTION} what it is."
    return DataError(f"array {name}", where, what, fix)


def joined_splits(
    where: Path, parts: Mapping[str, Mapping[str, NDArray[Any]]], files: Mapping[str, Path]
) -> dict[str, NDArray[Any]]:
    """Arrays of one file for each split as those of all samples, with an array ``split``.

    Sequences are padded to the longest; where a split has others, lengths are added.

    Args:
        where: The folder, for the messages.
        parts: Split to its arrays by name.
        files: Split to its file.

    Raises:
        DataError: If the splits hold different arrays, or arrays of other types or shapes.
    """
    first = next(iter(parts))
    full = {split: _with_lengths(arrays, parts) for split, arrays in parts.items()}
    names = dict.fromkeys(name for arrays in full.values() for name in arrays)
    for split, arrays in full.items():
        for name in names:
            if name not in arrays:
                kind = (
                    "array"
                    if any(a[name].ndim < 2 for a in full.values() if name in a)
                    else "modality"
                )
                what = f"Expected the {kind} {name} in every split, but this one has none."
                raise DataError(str(where), files[split], what, LAYOUT)
    for split, arrays in full.items():
        for name in names:
            _check_alike(name, files[split], arrays, full[first][name], first)
    joined = {name: _joined([arrays[name] for arrays in full.values()]) for name in names}
    counts = [len(next(iter(arrays.values()))) for arrays in full.values()]
    joined["split"] = np.repeat([*parts], counts)
    return joined


def _with_lengths(
    arrays: Mapping[str, NDArray[Any]], parts: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Arrays with lengths of those sequences that other splits have lengths of, or pad further."""
    found = dict(arrays)
    for name, array in arrays.items():
        key = f"{name}.lengths"
        alike = {
            part[name].shape[1] for part in parts.values() if name in part and part[name].ndim == 3
        }
        given = any(key in part for part in parts.values())
        if array.ndim == 3 and key not in arrays and (given or len(alike) > 1):
            found[key] = np.full(len(array), array.shape[1])
    return found


def _check_alike(
    name: str, where: Path, arrays: Mapping[str, NDArray[Any]], known: NDArray[Any], first: str
) -> None:
    """An array of a split must be that of the first one, for other samples, and as many as fit."""
    found, count = arrays[name], next((len(a) for a in arrays.values() if a.ndim), 0)
    if found.ndim == 0 or len(found) != count:
        raise unfit(name, where, f"{count} samples, as many as the others", found)
    if found.ndim != known.ndim or found.shape[-1:] * (found.ndim > 1) != known.shape[-1:] * (
        known.ndim > 1
    ):
        raise unfit(name, where, f"shape {('N', *known.shape[1:])} as in {first}", found)
    if found.ndim == 1 and (found.dtype.kind == "f") != (known.dtype.kind == "f"):
        raise unfit(name, where, f"{known.dtype} as in {first}", found)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if arrays[0].ndim != 3:
        return np.concatenate(arrays)
    steps = max(a.shape[1] for a in arrays)
    return np.concatenate([np.pad(a, ((0, 0), (0, steps - a.shape[1]), (0, 0))) for a in arrays])
