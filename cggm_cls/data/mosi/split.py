"""A split of a CMU-MOSI file, whose arrays are checked as they are taken out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cggm.errors import DataError
from cggm_cls.data.sequences import RaggedSequences

Mask = NDArray[np.bool_]

_BLOCK = 2**22  # values at a time, 16 MB as float32


def informative_steps(values: NDArray[np.number]) -> Mask:
    """Steps with a finite value other than zero, which padding never has.

    Args:
        values: Shape ``(N, T, D)``, N at least 1.

    Returns:
        Shape ``(N, T)``.
    """
    return np.concatenate([block.any(axis=2) for block, _ in _blocks(values)])


def keep_steps(values: NDArray[np.number], mask: Mask) -> tuple[RaggedSequences, int]:
    """Real steps as float32, with infinite values and NaN set to zero.

    Args:
        values: Shape ``(N, T, D)``.
        mask: True where a step is real, shape ``(N, T)``.

    Returns:
        The sequences, and how many values of the array, padding included, were not finite.
    """
    ends = mask.sum(axis=1).cumsum()
    steps = np.empty((int(ends[-1]), values.shape[2]), np.float32)
    first, written, replaced = 0, 0, 0
    for block, bad in _blocks(values):
        chosen = block[mask[first : first + len(block)]]
        steps[written : written + len(chosen)] = chosen
        first, written, replaced = first + len(block), written + len(chosen), replaced + bad
    offsets = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64))
    return RaggedSequences(torch.from_numpy(steps), offsets), replaced


def _blocks(values: NDArray[np.number]) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Some samples at a time as finite float32, and how many values had to be set to zero."""
    samples = max(1, _BLOCK // max(1, values[0].size))
    for start in range(0, len(values), samples):
        with np.errstate(over="ignore"):  # too large for float32: infinite, hence set to zero
            block = values[start : start + samples].astype(np.float32)
        bad = ~np.isfinite(block)
        block[bad] = 0
        yield block, int(bad.sum())


_INTACT = "Use the file as it was distributed."


@dataclass(frozen=True)
class MosiSplit:
    """Checked access to the arrays of a split.

    Args:
        name: Of the split.
        content: Key to array.
        file: Where that was read from, for the messages.
        labels_key: Key of the labels, which say how many samples there are.
    """

    name: str
    content: dict[str, Any]
    file: Path
    labels_key: str

    def error(self, key: str, what: str, fix: str = _INTACT) -> DataError:
        """A refusal that names the split and the key.

        Args:
            key: Of the array that is wrong.
            what: What was expected and what was found, one sentence.
            fix: What to do about it, one sentence.
        """
        return DataError(f"{self.name} {key}", self.file, what, fix)

    def array(self, key: str) -> NDArray[Any]:
        """The array, or the list as an array, of a key.

        Args:
            key: Such as ``text`` or ``labels``.

        Raises:
            DataError: If there is none, or one that numpy cannot hold without objects.
        """
        if key not in self.content:
            found = ", ".join(map(str, self.content)) or "none"
            raise self.error(key, f"Expected this key, but the split has the keys {found}.")
        try:
            array = np.asarray(self.content[key])
        except ValueError as error:
            raise self.error(key, "Expected an array, but found a ragged list.") from error
        if array.dtype.hasobject:
            raise self.error(key, "Expected numbers or texts, but found an array of objects.")
        return array

    def sequences(self, key: str) -> NDArray[np.number]:
        """Padded sequences, shape ``(N, T, D)``.

        Args:
            key: Of a modality.

        Raises:
            DataError: If they are absent, not numeric or of another shape.
        """
        array = self._numbers(key)
        if array.ndim != 3 or 0 in array.shape[1:]:
            expected = "an array of shape (samples, steps, features)"
            raise self.error(key, f"Expected {expected}, but found the shape {array.shape}.")
        return self._one_each(key, array)

    def labels(self) -> Tensor:
        """Sentiment of each sample in [-3, 3], float32, shape ``(N,)``.

        Raises:
            DataError: If they are absent, not one finite number each, or out of range.
        """
        array = self._numbers(self.labels_key)
        if array.size == 0 or array.ndim == 0 or array.size != len(array):
            what = f"Expected one label per sample, but found the shape {array.shape}."
            raise self.error(self.labels_key, what)
        values = array.reshape(-1).astype(np.float32)
        bad = np.flatnonzero(~(np.abs(values) <= 3))  # NaN counts as outside, too
        if len(bad):
            raise self.error(
                self.labels_key,
                f"Expected labels in [-3, 3], but found {values[bad[0]]} at sample {bad[0]}"
                f" and {len(bad) - 1} more outside.",
                "Use the unscaled sentiment scores, or leave those samples out.",
            )
        return torch.from_numpy(values)

    def ids(self) -> list[str]:
        """Identifier of each sample; rows of several parts are joined by ``_``.

        Where the file has none, ``train-0001`` and so on.

        Raises:
            DataError: If they are not as many as the samples.
        """
        if "id" not in self.content:
            return [f"{self.name}-{number:04d}" for number in range(1, self._count() + 1)]
        array = self._one_each("id", self.array("id"))
        return ["_".join(map(_text, row)) for row in array.reshape(len(array), -1).tolist()]

    def attention(self, steps: int) -> Mask | None:
        """Real steps of the text after BERT's attention mask, if the file has it.

        Args:
            steps: Of the text, padding included.

        Returns:
            Shape ``(N, T)``, or ``None``.

        Raises:
            DataError: If ``text_bert`` is not of shape ``(N, 3, T)``.
        """
        if "text_bert" not in self.content:
            return None
        tokens = self._one_each("text_bert", self._numbers("text_bert"))
        if tokens.shape[1:] != (3, steps):
            expected = f"the shape ({self._count()}, 3, {steps}), as long as the text"
            raise self.error("text_bert", f"Expected {expected}, but found {tokens.shape}.")
        return tokens[:, 1] != 0

    def first_steps(self, key: str, steps: int) -> Mask | None:
        """Real steps after lengths, if the file has them; the padding comes last then.

        Args:
            key: Of the lengths.
            steps: Of the sequences, padding included.

        Returns:
            Shape ``(N, T)``, or ``None``.

        Raises:
            DataError: If the lengths are not one each, from 0 to the number of steps.
        """
        if key not in self.content:
            return None
        lengths = self._one_each(key, self._numbers(key))
        valid = lengths.ndim == 1 and ((lengths >= 0) & (lengths <= steps)).all()
        if not valid:
            found = f"found the shape {lengths.shape}, {lengths.min()} to {lengths.max()}"
            raise self.error(key, f"Expected one length per sample, 0 to {steps}, but {found}.")
        mask: Mask = np.arange(steps) < lengths[:, None]
        return mask

    def drop(self, keys: Sequence[str]) -> None:
        """Forget arrays, so that their memory is free.

        Args:
            keys: Of the arrays; absent ones are ignored.
        """
        for key in keys:
            self.content.pop(key, None)

    def _numbers(self, key: str) -> NDArray[np.number]:
        array = self.array(key)
        if array.dtype.kind not in "fiu":
            raise self.error(key, f"Expected numbers, but found the type {array.dtype}.")
        return array

    def _count(self) -> int:
        return len(np.asarray(self.content[self.labels_key]))

    def _one_each(self, key: str, array: NDArray[Any]) -> NDArray[Any]:
        if array.ndim == 0 or len(array) != self._count():
            found = f"found the shape {array.shape}"
            what = f"Expected {self._count()} samples, as many as {self.labels_key}, but {found}."
            raise self.error(key, what)
        return array


def _text(part: object) -> str:
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)
