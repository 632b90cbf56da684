"""Splits of a table of samples: those it was given, or drawn ones, and what leaks between them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cggm.errors import UserError
from cggm_cls.data.arrays.files import plain_text
from cggm_cls.data.arrays.table import ArrayModality, ArrayTable

SPLITS = ("train", "valid", "test")

Rows = NDArray[np.int64]


def split_rows(
    table: ArrayTable, classes: Sequence[str] | None, seed: int
) -> tuple[dict[str, Rows], list[str]]:
    """Rows of each split, in the order of the table, and what the user ought to know about them.

    Splits are drawn class by class. Samples that occur several times are drawn into the training
    split, so that none of another split was seen in training. With groups, whole groups are drawn.

    Args:
        table: The samples.
        classes: The class of each, ``None`` for a regression.
        seed: Of the draw, not negative.

    Raises:
        DataError: If a given split is none, or tears a group.
        UserError: If there are too few samples, or groups, to draw splits.
    """
    if table.split is not None:
        rows = _given(table)
        _refuse_torn_groups(table, rows)
        return rows, _leaks(table, rows)
    rows = _drawn_groups(table, seed) if table.group is not None else _drawn(table, classes, seed)
    if not all(map(len, rows.values())):
        what = f"{table.where}: expected enough samples or groups to draw splits, but "
        what += ", ".join(f"{split} would have {len(part)}" for split, part in rows.items()) + "."
        raise UserError(what, "Give more, or an array `split`.")
    counts = ", ".join(f"{len(part)} for {split}" for split, part in rows.items())
    note = f"Splits were drawn, {counts}; an array `split` would fix them."
    return rows, [note, *_leaks(table, rows)]


def _given(table: ArrayTable) -> dict[str, Rows]:
    assert table.split is not None
    split_of = np.array([plain_text(value) for value in table.split])
    unknown = sorted({*split_of.tolist()} - {*SPLITS})
    absent = [split for split in SPLITS if not (split_of == split).any()]
    if unknown or absent:
        found = f"{unknown[0]!r}" if unknown else f"no sample of {absent[0]}"
        what = f"Expected samples of train, valid and test, but found {found}."
        raise table.refusal("split", what, "Correct the array, or delete it.")
    return {split: np.flatnonzero(split_of == split) for split in SPLITS}


def _refuse_torn_groups(table: ArrayTable, rows: Mapping[str, Rows]) -> None:
    if table.group is None:
        return
    home: dict[str, str] = {}
    for split, part in rows.items():
        for group in sorted({plain_text(value) for value in table.group[part]}):
            if home.setdefault(group, split) != split:
                what = f"Expected each group in one split, but {group!r} is in {home[group]} and "
                fix = "Keep the samples of a group together."
                raise table.refusal("group", f"{what}{split}.", fix)


def _drawn_groups(table: ArrayTable, seed: int) -> dict[str, Rows]:
    assert table.group is not None
    names, owner = np.unique([plain_text(value) for value in table.group], return_inverse=True)
    drawn = np.random.default_rng([seed, 0]).permutation(len(names))
    parts = _parts(drawn, table.shares)
    return {split: np.flatnonzero(np.isin(owner, part)) for split, part in parts.items()}


def _drawn(table: ArrayTable, classes: Sequence[str] | None, seed: int) -> dict[str, Rows]:
    rng = np.random.default_rng([seed, 0])
    content = _contents(table.modalities)
    counts = Counter(content)
    repeated = np.array([counts[digest] for digest in content])
    kind = np.unique(classes if classes is not None else [""] * len(content), return_inverse=True)
    parts = []  # for each class the rows of every split
    for number in range(len(kind[0])):
        rows = rng.permutation(np.flatnonzero(kind[1] == number))
        # Repeated samples first, and thus all in the training split.
        rows = rows[np.argsort(-repeated[rows], kind="stable")]
        parts.append(_parts(rows, table.shares))
    return {split: np.sort(np.concatenate([part[split] for part in parts])) for split in SPLITS}


def _parts(drawn: Rows, shares: Mapping[str, Fraction]) -> dict[str, Rows]:
    """The first ones for training, then for validation and test, at least one of three for each."""
    count, least = len(drawn), int(len(drawn) >= len(SPLITS))
    valid, test = (max(least, int(shares[split] * count)) for split in SPLITS[1:])
    train = max(count - valid - test, 0)
    return dict(zip(SPLITS, np.split(drawn, [train, train + valid]), strict=True))


def _contents(modalities: Mapping[str, ArrayModality]) -> list[bytes]:
    """Digest of all that a network would see of each sample."""
    arrays = [
        array for m in modalities.values() for array in (m.values, m.mask) if array is not None
    ]
    digests = []
    for row in range(len(arrays[0])):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array[row]).data)
        digests.append(digest.digest())
    return digests


def _leaks(table: ArrayTable, rows: Mapping[str, Rows]) -> list[str]:
    """A note where samples of validation or test are those of the training split over again."""
    content = _contents(table.modalities)
    seen = {content[row] for row in rows["train"]}
    found = {split: [r for r in rows[split] if content[r] in seen] for split in SPLITS[1:]}
    return [
        f"{len(part)} samples of {split} have the features of one in train, such as "
        f"{table.name(part[0])}: their figures say less than they seem to."
        for split, part in found.items()
        if part
    ]
