"""Folds of IEMOCAP: which utterances each one trains on, selects with and tests on."""

import re
import tokenize
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cggm.errors import DataError

CLASSES = 4

_PARTS = {"train": "trn", "valid": "val", "test": "tst"}
_FOLD = re.compile("[1-9][0-9]?")
_LAYOUT = "Give the folder with A, V, L and target that MMIN distributes."
_UNREADABLE = (OSError, ValueError, OverflowError, TypeError, tokenize.TokenError)
_FIX = "Use the target folder that MMIN distributes."


class Utterances(NamedTuple):
    """The utterances of a split.

    Attributes:
        ids: Their identifiers, such as ``Ses01F_impro01_F000``.
        target: Their classes, int64, shape ``(N,)``.
    """

    ids: list[str]
    target: Tensor


def fold_numbers(folder: Path) -> list[int]:
    """The folds that a folder in MMIN's layout holds, in order.

    Args:
        folder: With ``target/<fold>``.

    Raises:
        DataError: If there is no such folder, it holds no fold, or it is MulT's IEMOCAP.
    """
    _refuse_mult(folder)
    try:
        names = [entry.name for entry in (folder / "target").iterdir() if entry.is_dir()]
    except OSError as error:
        raise _no_folds(folder, error.strerror) from error
    found = sorted(int(name) for name in names if _FOLD.fullmatch(name))
    if not found:
        raise _no_folds(folder, "none of them is there")
    return found


def read_fold(folder: Path, fold: int) -> dict[str, Utterances]:
    """The splits ``train``, ``valid`` and ``test`` of a fold.

    Args:
        folder: With ``target/<fold>/{trn,val,tst}_{label,int2name}.npy``.
        fold: From 1 to 10.

    Raises:
        DataError: If the fold or a file is missing, a file is damaged or of another shape, a label
            is not one-hot, or an utterance occurs twice in the fold.
    """
    found = fold_numbers(folder)
    if fold not in found:
        raise DataError(
            str(folder),
            None,
            f"Expected --fold to be one of {', '.join(map(str, found))}, but got {fold}.",
            "Choose one of them, or `all`.",
        )
    source = folder / "target" / str(fold)
    splits = {split: _read_split(source, part) for split, part in _PARTS.items()}
    _refuse_repeated(source, splits)
    return splits


def _refuse_mult(folder: Path) -> None:
    pickles = [folder] if folder.is_file() else sorted(folder.glob("iemocap_data*.pkl"))
    if pickles and not (folder / "target").exists():
        raise DataError(
            str(folder.parent if folder.is_file() else folder),
            pickles[0],
            "Expected a folder in MMIN's layout, but found a file; the IEMOCAP pickles of MulT "
            "pose four binary problems, whose accuracies do not compare with that of four classes.",
            _LAYOUT,
        )


def _read_split(source: Path, part: str) -> Utterances:
    label_file, name_file = source / f"{part}_label.npy", source / f"{part}_int2name.npy"
    labels, names = _load(label_file), _load(name_file)
    fits = labels.ndim == 2 and labels.shape[1] == CLASSES and labels.dtype.kind in "biuf"
    if not fits or not len(labels):
        raise _unfit(label_file, f"numbers of shape (N, {CLASSES}), N > 0", labels)
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
        what = "Expected one-hot labels, but some rows are not one 1 among zeros."
        raise DataError(str(source), label_file, what, _FIX)
    ids = _decoded(name_file, names)
    if len(ids) != len(labels):
        what = f"Expected names of {len(labels)} labels, but found {len(ids)} names."
        raise DataError(str(source), name_file, what, _FIX)
    return Utterances(ids, torch.from_numpy(labels.argmax(1).astype(np.int64)))


def _load(file: Path) -> NDArray[Any]:
    """An array without pickled objects; the mapping cannot be larger than the file."""
    try:
        return np.array(np.lib.format.open_memmap(file, mode="r"))
    except _UNREADABLE as error:
        what = f"Expected an array, but the file cannot be read ({error})."
        raise DataError(str(file.parent), file, what, _FIX) from error


def _decoded(file: Path, names: NDArray[Any]) -> list[str]:
    fits = names.ndim in (1, 2) and names.size == len(names)
    if not fits or names.dtype.kind not in "SU":
        raise _unfit(file, "text of shape (N, 1)", names)
    try:
        flat = names.ravel()
        return [str(n) for n in (np.char.decode(flat, "utf-8") if flat.dtype.kind == "S" else flat)]
    except UnicodeDecodeError as error:
        what = f"Expected names in UTF-8, but got: {error}."
        raise DataError(str(file.parent), file, what, _FIX) from error


def _refuse_repeated(source: Path, splits: Mapping[str, Utterances]) -> None:
    counts = Counter(name for split in splits.values() for name in split.ids)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        where = [split for split, part in splits.items() if repeated[0] in part.ids]
        raise DataError(
            str(source),
            None,
            f"Expected every utterance once in a fold, but {len(repeated)} occur repeatedly, such "
            f"as {repeated[0]} in {' and '.join(where)}.",
            _FIX,
        )


def _no_folds(folder: Path, found: str | None) -> DataError:
    what = f"Expected the folders target/1 to target/10, but got: {found}."
    return DataError(str(folder), None, what, _LAYOUT)


def _unfit(file: Path, expected: str, found: NDArray[Any]) -> DataError:
    what = f"Expected {expected}, but found {found.dtype} of shape {found.shape}."
    return DataError(str(file.parent), file, what, _FIX)
