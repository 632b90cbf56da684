"""Loader of a folder of arrays: classes or numbers, features of one scale, and their splits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cggm.errors import DataError, UserError
from cggm_cls.data.arrays.description import DESCRIPTION
from cggm_cls.data.arrays.files import plain_text
from cggm_cls.data.arrays.folder import describe_folder, read_array_table
from cggm_cls.data.arrays.hints import hints
from cggm_cls.data.arrays.reader import Missing
from cggm_cls.data.arrays.simulation import DEMO
from cggm_cls.data.arrays.splits import Rows, split_rows
from cggm_cls.data.arrays.table import ArrayModality, ArrayTable
from cggm_cls.data.sequences import (
    RaggedSequences,
    Scaling,
    SequenceDataset,
    TaskData,
    content_digest,
)
from cggm_cls.data.simulated import is_simulated

_METRICS = {"classes": ("acc", "f1_macro"), "numbers": ("mae", "rmse", "r2")}
_MOST_CLASSES = 20  # different whole numbers that are classes without a word, however few samples
_PER_CLASS = 5  # samples of each beyond that


def load_array_folder(
    folder: Path,
    *,
    target: str | None = None,
    split_seed: int = 0,
    missing: Missing = "refuse",
    standardize: bool = True,
) -> TaskData:
    """Read a folder of arrays, see :mod:`cggm_cls.data.arrays`.

    Where splits are drawn, 15 % of the samples are for validation and 15 % for the test, equally of
    every class; with groups, 15 % of the groups each.

    Args:
        folder: The folder.
        target: Name of what is predicted, where the folder has several.
        split_seed: Of the draw of splits, not negative.
        missing: What becomes of NaN and infinite values, and of samples that the file of a modality
            lacks: ``"refuse"`` ends with a message, ``"absent"`` leaves out steps, and thus rows of
            features, that hold any, so that a sample may lack a modality.
        standardize: Whether every feature gets mean 0 and deviation 1 over the training split.

    Returns:
        The splits.

    Raises:
        DataError: If arrays are absent, damaged, of another shape or type, or not finite, or if a
            class, a group or a sample is in the wrong split.
        UserError: If there are too few samples to draw splits, or ``dataset.yaml`` is wrong.
    """
    table = read_array_table(folder, target, missing)
    data = table_data(table, split_seed=split_seed, missing=missing, standardize=standardize)
    return replace(data, simulated=is_simulated(folder))


def describe_array_folder(folder: Path | None) -> dict[str, tuple[str, ...]]:
    """What a comparison has to know of a folder before it trains.

    Args:
        folder: The folder; the demo's where ``None``.

    Returns:
        ``modalities`` in the order of the network and, unless the folder has several targets,
        ``metrics`` for classes or for numbers, the most important one first.

    Raises:
        DataError: See :func:`load_array_folder`.
        UserError: See there.
    """
    if folder is None:
        return {"modalities": tuple(sorted(DEMO)), "metrics": _METRICS["classes"]}
    description = describe_folder(folder)
    found = {"modalities": tuple(description.modalities)}
    if description.target is None and len(description.targets) > 1:
        return found
    classes = _classes(read_array_table(folder, None, "absent"))
    return {**found, "metrics": _METRICS["numbers" if classes is None else "classes"]}


def table_data(
    table: ArrayTable,
    *,
    split_seed: int = 0,
    missing: Missing = "refuse",
    standardize: bool = True,
) -> TaskData:
    """The splits of a table of arrays.

    Args:
        table: The samples.
        split_seed: See :func:`load_array_folder`.
        missing: See there.
        standardize: See there.

    Raises:
        DataError: See there.
        UserError: See there.
    """
    table, notes = _complete(table, missing)
    classes = _classes(table)
    rows, found = split_rows(table, classes, split_seed)
    notes += [*found, *hints(table, classes)]
    names = None if classes is None else _class_names(table, classes, rows, notes)
    targets = _targets(table, classes, names)
    modalities = {
        name: _sequences(name, modality, rows, standardize, notes)
        for name, modality in table.modalities.items()
    }
    splits = {
        split: SequenceDataset(
            {name: sequences[split] for name, (sequences, _) in modalities.items()},
            targets[torch.from_numpy(part)],
            [table.name(row) for row in part],
        )
        for split, part in rows.items()
    }
    return TaskData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=None if names is None else len(names),
        digest=content_digest(splits),
        notes=(*notes, *table.notes),
        names=tuple(names or ()),
        absences=any(bool((s.lengths == 0).any()) for s in splits["train"].inputs.values()),
        scaling={name: scaling for name, (_, scaling) in modalities.items() if scaling is not None},
    )


def with_drawn_splits(table: ArrayTable, seed: int) -> ArrayTable:
    """The same table with a split of each sample, drawn by what all its modalities hold.

    Args:
        table: The samples.
        seed: Of the draw.

    Raises:
        UserError: If there are too few samples, or groups.
    """
    rows, _ = split_rows(replace(table, split=None), _classes(table), seed)
    split = np.empty(len(table.target), "U5")
    for name, part in rows.items():
        split[part] = name
    return replace(table, split=split)


def _complete(table: ArrayTable, missing: Missing) -> tuple[ArrayTable, list[str]]:
    """The samples that have a modality, with masks that leave out what is not finite."""
    notes: list[str] = []
    found = {n: _finite(n, m, table, missing, notes) for n, m in table.modalities.items()}
    table = replace(table, modalities=found)
    empty = np.zeros(len(table.target), bool)
    if all(modality.mask is not None for modality in found.values()):
        empty = ~np.any([m.mask.any(axis=1) for m in found.values() if m.mask is not None], axis=0)
    if empty.any():
        first = table.name(int(np.flatnonzero(empty)[0]))
        if missing == "refuse" or empty.all():
            what = f"Expected a modality of each sample, but {int(empty.sum())} have none, such as "
            fix = "Leave them out, or give --missing absent."
            raise DataError("arrays", table.where, f"{what}{first}.", fix)
        notes.append(
            f"{int(empty.sum())} samples have no modality left, such as {first}: left out."
        )
        table = table.chosen(np.flatnonzero(~empty))
    return table, notes


def _finite(
    name: str, modality: ArrayModality, table: ArrayTable, missing: Missing, notes: list[str]
) -> ArrayModality:
    values = modality.values if modality.values.ndim == 3 else modality.values[:, None]
    mask = np.ones(values.shape[:2], bool) if modality.mask is None else modality.mask
    bad = ~np.isfinite(values) & mask[:, :, None]
    steps = bad.any(axis=2)
    count = int(steps.sum())
    if not count:
        return modality
    void = np.flatnonzero(bad.sum(axis=(0, 1)) == mask.sum())
    if len(void):
        shown = ", ".join(modality.columns[k] if modality.columns else str(k) for k in void[:3])
        what = f"Expected finite numbers, but {len(void)} features hold none: {shown}."
        raise DataError(f"array {name}", modality.where, what, "Leave these features out.")
    if missing == "refuse":
        row = int(np.flatnonzero(steps.any(axis=1))[0])
        columns = [
            modality.columns[k] if modality.columns else str(k)
            for k in np.flatnonzero(bad[row].any(axis=0))[:3]
        ]
        what = f"Expected finite numbers, but {count} steps or rows hold NaN or infinite ones, "
        what += f"the first of them in {table.name(row)} (columns {', '.join(columns)})."
        fix = "Correct them, or give --missing absent, which leaves such steps and rows out."
        raise DataError(f"array {name}", modality.where, what, fix)
    notes.append(f"{count} steps or rows of {name} held NaN or infinite values and are absent.")
    return replace(modality, mask=mask & ~steps)


def _classes(table: ArrayTable) -> list[str] | None:
    """The class of each sample, ``None`` for a regression."""
    target, kind = table.target, table.kind
    number = target.dtype.kind in "iuf"
    if target.dtype.kind == "f" and not np.isfinite(target).all():
        bad = np.flatnonzero(~np.isfinite(target))
        what = f"Expected finite targets, but {len(bad)} of {len(target)} are not, the first of "
        what += f"them that of {table.name(int(bad[0]))}."
        raise table.refusal("target", what, "Leave these samples out.")
    if kind == "numbers":
        if not number:
            what = f"Expected numbers, but found {plain_text(target[0])!r}."
            raise table.refusal("target", what, "Say `kind: classes`.")
        return None
    whole = target.dtype.kind != "f" or bool((target == np.rint(target)).all())
    different = len(np.unique(target))
    if kind is None and number:
        few = different <= _MOST_CLASSES and len(target) >= _PER_CLASS * different
        rare = different > max(_MOST_CLASSES, len(target) / _PER_CLASS)
        if (target.dtype.kind == "f" and whole and few) or (target.dtype.kind != "f" and rare):
            what = f"Expected classes or numbers, but {different} different whole numbers of "
            what += f"{len(target)} samples, as {target.dtype}, could be either."
            fix = (
                f"Say `kind: classes` or `kind: numbers` of the target in {DESCRIPTION}, or write "
            )
            raise table.refusal("target", what, fix + "classes as texts.")
        if target.dtype.kind == "f":
            return None
    if not whole:
        what = "Expected classes, but found numbers that are not whole."
        raise table.refusal("target", what, "Say `kind: numbers`.")
    labels = target.astype(np.int64) if target.dtype.kind == "f" else target
    return [plain_text(value) for value in labels]


def _class_names(
    table: ArrayTable, classes: Sequence[str], rows: Mapping[str, Rows], notes: list[str]
) -> list[str]:
    """Names of the classes in order of their values; each must occur in the training split."""
    found = np.array(classes)
    known = sorted({*found[rows["train"]].tolist()})
    if table.target.dtype.kind in "iuf":
        known.sort(key=int)
    if len(known) < 2:
        what = f"Expected at least two classes in the training split, but found {known[0]!r} alone."
        raise table.refusal("target", what, "Check targets and splits.")
    for split, part in rows.items():
        unseen = [row for row in part if found[row] not in {*known}]
        if unseen:
            what = f"Expected the classes of train in {split}, but found {str(found[unseen[0]])!r} "
            what += f"too, in {table.name(unseen[0])}."
            raise table.refusal("target", what, "Move samples of it to train.")
        lacking = [name for name in known if name not in {*found[part]}]
        if lacking:
            notes.append(f"No sample of {split} is of {', '.join(lacking[:5])}.")
    return known


def _targets(
    table: ArrayTable, classes: Sequence[str] | None, names: Sequence[str] | None
) -> torch.Tensor:
    if classes is None or names is None:
        values = table.target.astype(np.float32)
        if not np.isfinite(values).all():
            what = "Expected targets within single precision, but some are beyond."
            raise table.refusal("target", what, "Scale them.")
        if not np.ptp(values):
            what = f"Expected different targets, but all are {values[0]:g}."
            raise UserError(f"{table.where}: {what}", "Check the target.")
        return torch.from_numpy(values)
    number = {name: place for place, name in enumerate(names)}
    return torch.tensor([number[name] for name in classes])


def _sequences(
    name: str,
    modality: ArrayModality,
    rows: Mapping[str, Rows],
    standardize: bool,
    notes: list[str],
) -> tuple[dict[str, RaggedSequences], Scaling | None]:
    """The sequences of a modality in every split, and what scaled them."""
    array, cuts = modality.values, modality.steps
    values = array if array.ndim == 3 else array[:, None]
    mask = np.ones(values.shape[:2], bool) if modality.mask is None else modality.mask
    steps = {split: values[part][mask[part]] for split, part in rows.items()}  # (S, D)
    if not len(steps["train"]):
        what = "Expected it in the training split, but every sample there lacks it."
        raise DataError(f"array {name}", modality.where, what, "Leave the modality out.")
    scaling = _scaling(name, modality, steps["train"], notes) if standardize else None
    found = {}
    for split, part in rows.items():
        scaled = steps[split].astype(np.float64) if scaling else steps[split]
        scaled = scaled if scaling is None else (scaled - scaling.mean) / scaling.deviation
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(scaled, dtype=np.float32)
        if not np.isfinite(single).all():
            what = "Expected numbers within single precision, but some are beyond."
            raise DataError(f"array {name}", modality.where, what, "Scale the array.")
        lengths = torch.from_numpy(mask[part].sum(1) * cuts)
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found[split] = RaggedSequences(
            torch.from_numpy(single.reshape(len(single) * cuts, -1)), ends
        )
    return found, None if scaling is None else scaling.cut(cuts)


def _scaling(name: str, modality: ArrayModality, train: NDArray[Any], notes: list[str]) -> Scaling:
    """Mean and deviation of each feature over the training split, which is all that is seen."""
    exact = train.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = exact.mean(0), exact.std(0)
    if not np.isfinite(deviation).all():
        what = "Expected numbers whose deviation can be computed, but some are too large."
        raise DataError(f"array {name}", modality.where, what, "Scale the array.")
    # Rounding gives equal values a tiny deviation, over which a difference would explode.
    constant = np.ptp(exact, axis=0) == 0
    if constant.any():
        where = np.flatnonzero(constant)
        shown = [modality.columns[k] if modality.columns else str(k) for k in where[:3]]
        shown += ["..."] * (len(where) > 3)
        notes.append(
            f"{len(where)} of {len(constant)} features of {name} are constant in training and tell "
            f"nothing: {', '.join(shown)}."
        )
    mean = np.where(constant, exact[0], mean)
    return Scaling(mean, np.where(constant, 1.0, deviation))
