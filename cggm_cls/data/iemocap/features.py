"""Reader of IEMOCAP, from the folder of features that MMIN distributes.

It has text, audio and vision of utterances in four classes. Which emotion each class stands for is
not documented there, so classes have no names here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cggm.errors import DataError
from cggm_cls.data.iemocap.folds import CLASSES, Utterances, read_fold
from cggm_cls.data.iemocap.hdf5 import ArrayFile, open_arrays
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData, content_digest
from cggm_cls.data.simulated import is_simulated

FILES = {"text": "L/bert_large.h5", "audio": "A/comparE.h5", "vision": "V/denseface.h5"}
"""Modality to file, in the order in which the network sees them."""

STATISTICS = "A/comparE_mean_std.h5"
WIDTHS: dict[str, int] = {"text": 1024, "audio": 130, "vision": 342}
STEPS = {"text": 22, "vision": 50}
"""Steps of the genuine arrays, padded with zeros."""

Array = NDArray[np.float32]


def load_iemocap(folder: Path, fold: int, *, audio_steps: int = 350) -> TaskData:
    """Read one fold.

    Audio is normalized by the mean and deviation of the fold's training split, which the folder
    holds; a deviation of 0 counts as 1. Steps of text and vision that are all zero are padding and
    left out. Values that are not finite become 0. The notes say what was cut, replaced or empty.

    The folds are leave-one-speaker-out: number 1 alone is a tenth of the published protocol. About
    1 GB of memory is used for the genuine data.

    Args:
        folder: With ``A``, ``V``, ``L`` and ``target``.
        fold: One of :func:`~cggm_cls.data.iemocap.folds.fold_numbers`, from 1 to 10.
        audio_steps: Longer audio is cut to its beginning; a tenth of a second each.

    Raises:
        DataError: If a file, the fold or an utterance's features are missing, damaged, unsafe or of
            another shape, or the splits of the fold overlap.
    """
    splits = read_fold(folder, fold)
    notes: list[str] = []
    inputs: dict[str, dict[str, RaggedSequences]] = {split: {} for split in splits}
    for modality in FILES:
        steps = STEPS.get(modality, audio_steps)
        reader = _Reader(folder, modality, steps, _statistics(folder, fold, modality))
        for split, sequences in reader.read(splits).items():
            inputs[split][modality] = sequences
        notes += reader.notes()
    parts = {name: SequenceDataset(inputs[name], s.target, s.ids) for name, s in splits.items()}
    return TaskData(
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        classes=CLASSES,
        digest=content_digest(parts),
        simulated=is_simulated(folder),
        notes=tuple(notes),
    )


class _Reader:
    """Reads one modality of every split and counts what it changes.

    Args:
        folder: See :func:`load_iemocap`.
        modality: One of :data:`FILES`.
        steps: How many steps are kept.
        statistics: Mean and deviation to normalize with, or ``None`` where zero steps are padding.
    """

    def __init__(
        self, folder: Path, modality: str, steps: int, statistics: tuple[Array, Array] | None
    ) -> None:
        self._file = folder / FILES[modality]
        self._modality = modality
        self._steps = steps
        self._statistics = statistics
        self._cut = self._replaced = self._empty = 0

    def read(self, splits: Mapping[str, Utterances]) -> dict[str, RaggedSequences]:
        """The sequences of every split."""
        with open_arrays(self._file) as arrays:
            _refuse_missing(arrays, [name for split in splits.values() for name in split.ids])
            return {
                split: RaggedSequences.from_list(
                    [self._sequence(arrays, u) for u in utterances.ids]
                )
                for split, utterances in splits.items()
            }

    def notes(self) -> list[str]:
        """What was cut, replaced or empty, a sentence each."""
        counted = (
            (self._cut, f"utterances had their {self._modality} cut to {self._steps} steps."),
            (self._replaced, f"values of {self._modality} were not finite and became 0."),
            (self._empty, f"utterances have no step of {self._modality}."),
        )
        return [f"{count} {what}" for count, what in counted if count]

    def _sequence(self, arrays: ArrayFile, utterance: str) -> torch.Tensor:
        width = WIDTHS[self._modality]
        values, length = arrays.read([utterance], width=width, steps=self._steps)
        if self._statistics is None:
            values = values[values.any(1)]  # padding is zero in every feature
        else:
            mean, deviation = self._statistics
            with np.errstate(all="ignore"):
                values = (values - mean) / deviation
        finite = np.isfinite(values)
        self._cut += length > self._steps
        self._replaced += int((~finite).sum())
        self._empty += not len(values)
        return torch.from_numpy(np.where(finite, values, np.float32(0)))


def _statistics(folder: Path, fold: int, modality: str) -> tuple[Array, Array] | None:
    if modality != "audio":
        return None
    file = folder / STATISTICS
    with open_arrays(file) as arrays:
        mean, deviation = (
            arrays.read([str(fold), name], width=WIDTHS["audio"], steps=None)[0]
            for name in ("mean", "std")
        )
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation >= 0).all()):
        what = "Expected finite means and deviations of at least 0, but found others."
        raise DataError(f"fold {fold}", file, what, "Use the file that MMIN distributes.")
    return mean, np.where(deviation == 0, np.float32(1), deviation)


def _refuse_missing(arrays: ArrayFile, utterances: Sequence[str]) -> None:
    missing = arrays.missing(utterances)
    if missing:
        raise DataError(
            missing[0],
            arrays.file,
            f"Expected features of {len(utterances)} utterances, but {len(missing)} are missing, "
            f"such as {missing[0]}.",
            "Use the features and the target folder of one and the same release.",
        )
