"""Table of arrays about one set of samples, one entry for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError
from cggm_cls.data.arrays.description import DESCRIPTION, SHARES, Kind


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
