"""Loader of a folder of arrays: its splits, given or drawn, its targets and its features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cggm.errors import DataError, UserError
from cggm_cls.data.arrays.table import (
    LAYOUT,
    LENGTHS,
    ArrayTable,
    plain_text,
    read_archive,
    read_arrays,
)
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData, content_digest
from cggm_cls.data.simulated import is_simulated

SPLITS = ("train", "valid", "test")
SHARES = {"valid": 0.15, "test": 0.15}
"""Of the samples, or of the groups, where splits are drawn."""

Missing = Literal["refuse", "absent"]


def load_array_folder(
    folder: Path, *, split_seed: int = 0, missing: Missing = "refuse", standardize: bool = True
) -> TaskData:
    """Read a folder of arrays, see :mod:`cggm_cls.data.arrays`.

    Where splits are drawn, 15 % of the samples are for validation and 15 % for the test, equally of
    every class; with groups, 15 % of the groups each.

    Args:
        folder: The folder.
        split_seed: Of the draw of splits, not negative.
        missing: What becomes of NaN and infinite values: ``"refuse"`` ends with a message,
            ``"absent"`` leaves out steps, and thus rows of features, that hold any.
        standardize: Whether every feature gets mean 0 and deviation 1 over the training split.

    Returns:
        The splits.

    Raises:
        DataError: If arrays are absent, damaged, of another shape or type, or not finite, or if a
            class, a group or a sample is in the wrong split.
        UserError: If there are too few samples to draw splits.
    """
    tables, notes = _splits(folder, split_seed)
    _refuse_torn_groups(tables)
    names = _class_names(tables)
    modalities = {
        name: _features(name, tables, missing, notes) for name in tables["train"].modalities
    }
    if standardize:
        for sequences in modalities.values():
            _standardize(sequences)
    splits = {
        split: SequenceDataset(
            {name: sequences[split] for name, sequences in modalities.items()},
            _target(table, names),
            table.ids(split),
        )
        for split, table in tables.items()
    }
    _refuse_repeated_ids(folder, splits)
    return TaskData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=None if names is None else len(names),
        digest=content_digest(splits),
        simulated=is_simulated(folder),
        notes=tuple(notes),
        names=tuple(names or ()),
    )


def _splits(folder: Path, seed: int) -> tuple[dict[str, ArrayTable], list[str]]:
    """The arrays of each split, checked, and what the user ought to know about them."""
    archives = {split: folder / f"{split}.npz" for split in SPLITS}
    if any(file.exists() for file in archives.values()):
        tables = {split: ArrayTable(file, read_archive(file)) for split, file in archives.items()}
        for table in tables.values():
            _check_alike(tables["train"], table.check())
        return tables, []
    table = ArrayTable(folder, read_arrays(folder)).check()
    if "split" in table.arrays:
        return _given_splits(table), []
    return _drawn_splits(table, seed)


def _check_alike(train: ArrayTable, other: ArrayTable) -> None:
    """The arrays of a split must be those of the training split, for other samples."""
    for name in sorted({*train.modalities} | {*other.modalities}):
        expected, found = train.arrays.get(name), other.arrays.get(name)
        if expected is None or found is None:
            missing = train if expected is None else other
            what = f"Expected the modality {name} in every split, but this one has none."
            raise DataError(str(missing.where.parent), missing.where, what, LAYOUT)
        if expected.ndim != found.ndim or expected.shape[-1] != found.shape[-1]:
            raise other.error(name, f"shape {('N', *expected.shape[1:])} as in train", found)


def _given_splits(table: ArrayTable) -> dict[str, ArrayTable]:
    split_of = np.array([plain_text(value) for value in table.arrays["split"]])
    unknown = sorted({*split_of.tolist()} - {*SPLITS})
    absent = [split for split in SPLITS if not (split_of == split).any()]
    if unknown or absent:
        found = f"{unknown[0]!r}" if unknown else f"no sample of {absent[0]}"
        what = f"Expected samples of train, valid and test, but found {found}."
        raise DataError("array split", table.where, what, "Correct the array, or delete it.")
    return {split: table.rows(np.flatnonzero(split_of == split)) for split in SPLITS}


def _refuse_torn_groups(tables: Mapping[str, ArrayTable]) -> None:
    home: dict[str, str] = {}
    for split, table in tables.items():
        for group in sorted({plain_text(value) for value in table.arrays.get("group", ())}):
            if home.setdefault(group, split) != split:
                what = f"Expected each group in one split, but {group!r} is in {home[group]} and "
                fix = "Keep the samples of a group together."
                raise DataError("array group", table.where, f"{what}{split}.", fix)


def _drawn_splits(table: ArrayTable, seed: int) -> tuple[dict[str, ArrayTable], list[str]]:
    """Splits of whole groups, or of samples, equally many of each class."""
    rng, classes = np.random.default_rng([seed, 0]), _are_classes(table.target)
    groups = table.arrays.get("group")
    if groups is not None:
        names, owner = np.unique([plain_text(value) for value in groups], return_inverse=True)
        parts = _parts(rng.permutation(len(names)))
        rows = {split: np.flatnonzero(np.isin(owner, part)) for split, part in parts.items()}
    else:
        kinds = [plain_text(value) if classes else "" for value in table.target]
        kind = np.unique(kinds, return_inverse=True)[1]
        shares = [_parts(rng.permutation(np.flatnonzero(kind == k))) for k in np.unique(kind)]
        rows = {split: np.sort(np.concatenate([s[split] for s in shares])) for split in SPLITS}
    if not all(map(len, rows.values())):
        what = f"{table.where}: expected enough samples or groups to draw splits, but "
        what += ", ".join(f"{split} would have {len(part)}" for split, part in rows.items()) + "."
        raise UserError(what, "Give more, or an array `split`.")
    counts = ", ".join(f"{len(part)} for {split}" for split, part in rows.items())
    note = f"Splits were drawn, {counts}; an array `split` would fix them."
    return {split: table.rows(part) for split, part in rows.items()}, [note]


def _parts(drawn: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    # The first ones are for validation and test, and what is left for training.
    ends = np.cumsum([round(share * len(drawn)) for share in SHARES.values()])
    valid, test, train = np.split(drawn, ends)
    return {"train": train, "valid": valid, "test": test}


def _are_classes(target: NDArray[Any]) -> bool:
    return target.dtype.kind != "f"


def _class_names(tables: Mapping[str, ArrayTable]) -> list[str] | None:
    """Names of the classes in order of their values, ``None`` for a regression."""
    target = tables["train"].target
    if any(_are_classes(table.target) != _are_classes(target) for table in tables.values()):
        what = "Expected targets of one type in all splits, but found classes and numbers."
        raise DataError("array target", tables["train"].where, what, "Write them alike.")
    if not _are_classes(target):
        return None
    known = [plain_text(value) for value in np.unique(target)]
    if len(known) < 2:
        what = f"Expected at least two classes in the training split, but found {known[0]!r} alone."
        raise DataError("array target", tables["train"].where, what, "Check targets and splits.")
    for split, table in tables.items():
        unseen = sorted({plain_text(value) for value in table.target} - {*known})
        if unseen:
            what = f"Expected the classes of train in {split}, but found {unseen[0]!r}, too."
            raise DataError("array target", table.where, what, "Move samples of it to train.")
    return known


def _target(table: ArrayTable, names: list[str] | None) -> torch.Tensor:
    if names is None:
        values = table.target.astype(np.float32)
        bad = int((~np.isfinite(values)).sum())
        if bad:
            what = f"Expected finite targets, but {bad} of {len(values)} are not."
            raise DataError("array target", table.where, what, "Leave these samples out.")
        return torch.from_numpy(values)
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number[plain_text(value)] for value in table.target])


def _features(
    name: str, tables: Mapping[str, ArrayTable], missing: Missing, notes: list[str]
) -> dict[str, RaggedSequences]:
    """The sequences of a modality in every split; what was left out is added to the notes."""
    found: dict[str, RaggedSequences] = {}
    dropped = 0
    for split, table in tables.items():
        array = np.asarray(table.arrays[name])
        values = (array if array.ndim == 3 else array[:, None]).astype(np.float32)
        steps = values.shape[1]
        lengths = table.arrays.get(name + LENGTHS, np.full(len(values), steps))
        mask = np.arange(steps) < np.asarray(lengths)[:, None]
        finite = np.isfinite(values).all(axis=2)
        bad = int((mask & ~finite).sum())
        if bad and missing == "refuse":
            row = int(np.flatnonzero((mask & ~finite).any(axis=1))[0])
            what = f"Expected finite numbers, but {bad} steps or rows hold NaN or infinite ones, "
            what += f"the first of them in sample {row} of {split}."
            raise DataError(
                f"array {name}", table.where, what, "Correct them, or give --missing absent."
            )
        dropped += bad
        found[split] = RaggedSequences.from_padded(
            torch.from_numpy(values), torch.from_numpy(mask & finite)
        )
    if dropped:
        notes.append(
            f"{dropped} steps or rows of {name} held NaN or infinite values and are absent."
        )
    return found


def _standardize(sequences: Mapping[str, RaggedSequences]) -> None:
    """Mean 0 and deviation 1 of each feature over the training split, in place."""
    train = sequences["train"].values.double()
    if not len(train):
        return
    mean, deviation = train.mean(0), train.std(0, correction=0)
    deviation[deviation == 0] = 1  # a constant feature becomes 0
    for part in sequences.values():
        part.values.copy_((part.values.double() - mean) / deviation)


def _refuse_repeated_ids(folder: Path, splits: Mapping[str, SequenceDataset]) -> None:
    home: dict[str, str] = {}
    for split, dataset in splits.items():
        for name in dataset.ids:
            if name in home:
                what = f"Expected every identifier once, but {name!r} is in {home[name]} and again "
                what += f"in {split}."
                raise DataError("array id", folder, what, "Give each sample one of its own.")
            home[name] = split
