"""Folder of arrays as one table: which files are read, and what they were taken for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError
from cggm_cls.data.arrays.description import (
    DESCRIPTION,
    LAYOUT,
    Description,
    read_description,
)
from cggm_cls.data.arrays.files import PICKLES, FileContent, is_array_file, read_array_file
from cggm_cls.data.arrays.guess import guess_description, is_about_samples
from cggm_cls.data.arrays.reader import Missing, TableReader
from cggm_cls.data.arrays.splits import SPLITS
from cggm_cls.data.arrays.table import ArrayModality, ArrayTable, unfit

_OWN_FILES = {"simulated.json"}


def read_array_table(folder: Path, target: str | None, missing: Missing) -> ArrayTable:
    """The arrays of a folder as one table, with what was taken for what in its notes.

    Args:
        folder: The folder.
        target: Name of the target, where there are several.
        missing: What becomes of samples that the file of a modality lacks, see
            :func:`cggm_cls.data.arrays.load.load_array_folder`.

    Raises:
        DataError: If files are absent, damaged, or do not fit together.
        UserError: If ``dataset.yaml`` is wrong, or the target is not there.
    """
    description, contents = _described(folder)
    chosen = description.chosen(target, folder)
    table = TableReader(folder, description, contents, chosen, missing).read()
    notes = [*_taken(description, chosen, table), *_unread(folder, contents)]
    return replace(table, notes=(*table.notes, *notes))


def describe_folder(folder: Path) -> Description:
    """What a folder holds, as its description says or as its names do.

    Args:
        folder: The folder.

    Raises:
        DataError: If it holds no such files.
        UserError: If ``dataset.yaml`` is wrong.
    """
    return _described(folder)[0]


def _described(folder: Path) -> tuple[Description, dict[str, FileContent]]:
    """What a folder holds, and the files that this speaks of."""
    if not folder.is_dir():
        raise DataError(str(folder), None, "Expected a folder, but there is none.", LAYOUT)
    description = read_description(folder)
    if description is None:
        contents = {content.path.name: content for content in _all_files(folder)}
        return guess_description(folder, [*contents.values()]), contents
    named = _named_columns(description)
    return description, {
        name: read_array_file(folder / name, named.__contains__) for name in description.files
    }


def _named_columns(description: Description) -> set[str | None]:
    """Columns that are kept as they are written."""
    found = [description.split, description.group, *(t.at for t in description.targets.values())]
    return {description.id_name, *(at.name for at in found if at is not None)}


def _all_files(folder: Path) -> Iterator[FileContent]:
    """Every file of arrays in a folder; one for each split counts as one file."""
    files = [f for f in sorted(folder.iterdir()) if is_array_file(f) and not f.name.startswith(".")]
    splits = {f.suffix: f for f in files if f.stem in SPLITS}
    for suffix in splits:
        parts = {split: folder / f"{split}{suffix}" for split in SPLITS}
        for part in parts.values():
            if part not in files:
                what = f"Expected {part.name} beside the other splits, but there is no such file."
                raise DataError(str(folder), part, what, LAYOUT)
        found = {split: read_array_file(f, lambda _: True) for split, f in parts.items()}
        if any(content.is_table for content in found.values()):
            what = f"Expected one table with a column `split`, but found {splits[suffix].name}."
            raise DataError(str(folder), splits[suffix], what, "Join the tables of the splits.")
        arrays = {split: content.arrays for split, content in found.items()}
        path = folder / f"{{{','.join(SPLITS)}}}{suffix}"
        yield FileContent(path, joined_splits(folder, arrays, parts))
    for file in files:
        if file.stem not in SPLITS:
            yield read_array_file(file, partial(is_about_samples, file))


def _taken(description: Description, target: str, table: ArrayTable) -> Iterator[str]:
    """What names of files were taken for, and targets that serve for nothing."""
    if description.guessed:
        parts = [f"{name} {_shape(m)} of {m.where.name}" for name, m in table.modalities.items()]
        beside = {"identifiers": table.ids, "a split": table.split, "groups": table.group}
        found = [name for name, values in beside.items() if values is not None]
        yield (
            f"Taken by names alone: modalities {', '.join(parts)}; target "
            f"{description.targets[target].at}; {', '.join(found) or 'nothing else'}. "
            f"{DESCRIPTION} would say otherwise."
        )
    others = [name for name in description.targets if name != target]
    if others:
        yield f"Other targets are not looked at: {', '.join(others)}."


def _shape(modality: ArrayModality) -> str:
    values, columns = modality.values, modality.columns
    if values.ndim == 3:
        return f"(up to {values.shape[1]} steps of {values.shape[2]})"
    shown = ", ".join([*columns[:3], *(["..."] if len(columns) > 3 else [])])
    return f"({values.shape[1]} features{': ' * bool(shown)}{shown})"


def _unread(folder: Path, contents: Mapping[str, FileContent]) -> Iterator[str]:
    """Files that lie in the folder and belong to nothing that was read."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    joined = {f"{split}{name[name.rfind('.') :]}" for name in contents for split in SPLITS}
    plain = {name for name in names if not name.startswith(".")} - {*contents} - joined
    left = sorted(plain - {DESCRIPTION} - _OWN_FILES)
    if left:
        pickles = any(Path(name).suffix in PICKLES for name in left)
        why = "; reading a pickle would run what it holds" if pickles else ""
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        yield f"Not read: {shown}{why}."


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
