"""Reader of what a description speaks of: arrays of files, aligned by their identifiers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cggm.errors import DataError
from cggm_cls.data.arrays.description import (
    DESCRIPTION,
    Description,
    ModalitySource,
    Reference,
)
from cggm_cls.data.arrays.files import (
    FileContent,
    converted_texts,
    plain_text,
    refuse_empty,
    stacked_columns,
)
from cggm_cls.data.arrays.table import ArrayModality, ArrayTable, unfit

Missing = Literal["refuse", "absent"]

_ID_NAME = re.compile(
    r"|(?i:ids?|uid|uuid|index|idx|row|unnamed: \d+)|.*[^A-Za-z0-9](?i:id|uid|uuid)|.*[a-z](ID|Id)"
)
_FEWEST = 10  # rows from which whole numbers without a gap are taken for a count of rows


class TableReader:
    """Reads what a description speaks of, in the order of the target's samples.

    Args:
        folder: The folder.
        description: What it holds.
        contents: Its files by name.
        target: Name of the target to train on.
        missing: What becomes of samples that a modality's file lacks, see
            :func:`cggm_cls.data.arrays.load.load_array_folder`.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        contents: Mapping[str, FileContent],
        target: str,
        missing: Missing,
    ) -> None:
        self.folder, self.description, self.contents = folder, description, contents
        self.source, self.missing = description.targets[target], missing
        self.notes: list[str] = []
        self.target = self._target(target)
        self.own_ids = self._ids(self._content(self.source.at))
        others = [m.at for m in description.modalities.values()]
        listed = [self._ids(self._content(at)) for at in others] if self.own_ids is None else []
        known = [ids for ids in listed if ids is not None]
        self.order = self.own_ids or (known[0] if known else None)

    def read(self) -> ArrayTable:
        """The table.

        Raises:
            DataError: If an array is absent, of another type or shape or number of samples, or
                identifiers are repeated or differ between files.
        """
        description, files = self.description, self._files()
        self._require_ids()
        modalities = {n: self._modality(n, s) for n, s in description.modalities.items()}
        return ArrayTable(
            self.folder,
            modalities,
            self.target,
            kind=self.source.kind,
            ids=self.order,
            split=self._beside("split", description.split),
            group=self._beside("group", description.group),
            shares=description.shares,
            sample=description.sample,
            notes=tuple(dict.fromkeys(self.notes)),
            files=files,
        )

    def _files(self) -> dict[str, Path]:
        own = self.description
        found = {"target": self.source.at, "split": own.split, "group": own.group}
        return {name: self._content(at).path for name, at in found.items() if at is not None}

    def _require_ids(self) -> None:
        """Refuse a name of identifiers that no file has: rows would be taken as they come."""
        name = self.description.id_name
        if self.order is None and name != Description.id_name:
            known = ", ".join(f"{n} ({', '.join(c.arrays)})" for n, c in self.contents.items())
            what = f"Expected {name!r}, the identifiers of {DESCRIPTION}, but found {known}."
            raise DataError(str(self.folder), None, what, "Correct `id`, or leave it out.")

    def _content(self, at: Reference) -> FileContent:
        return self.contents[at.file]

    def _array(self, at: Reference) -> NDArray[Any]:
        content = self._content(at)
        if at.name is None and len(content.arrays) == 1:
            return next(iter(content.arrays.values()))
        if at.name is None or at.name not in content.arrays:
            known = ", ".join(content.arrays) or "none"
            wanted = "the name of an array" if at.name is None else f"{at.name!r}"
            what = f"Expected {wanted} in it, but it holds {known}."
            raise DataError(str(self.folder), content.path, what, f"Correct {DESCRIPTION}.")
        return content.arrays[at.name]

    def _target(self, name: str) -> NDArray[Any]:
        target, where = self._array(self.source.at), self._content(self.source.at).path
        if target.dtype.kind == "O":
            target = converted_texts(target, f"array {name}", where)
        elif target.dtype.kind in "US":
            refuse_empty([plain_text(value) for value in target.ravel()], f"array {name}", where)
        if target.shape != (target.size,) or not target.size or target.dtype.kind not in "biufUS":
            raise unfit(name, where, "numbers or texts of shape (N,), N > 0", target)
        return target

    def _ids(self, content: FileContent) -> list[str] | None:
        """Identifiers of the rows of a file, each once; ``None`` where it has none."""
        found = next((a for n, a in content.arrays.items() if self._identifies(n)), None)
        if found is None and self.description.ids is not None and not content.is_table:
            found = self._array(self.description.ids)
        if found is None:
            return None
        if found.ndim != 1:
            raise unfit(self.description.id_name, content.path, "one entry per sample", found)
        ids = [plain_text(value) for value in found]
        refuse_empty(["" if name == "nan" else name for name in ids], "array id", content.path)
        if len({*ids}) < len(ids):
            again = Counter(ids).most_common(1)[0][0]
            rows = [number for number, name in enumerate(ids) if name == again]
            what = f"Expected every identifier once, but {again!r} is in rows {rows[0]} and "
            what += f"{rows[1]} (from 0), and {len(ids) - len({*ids})} rows repeat one."
            fix = "Give each sample one of its own; steps of a sequence belong into an array."
            raise DataError("array id", content.path, what, fix)
        return ids

    def _identifies(self, name: str) -> bool:
        own = self.description.id_name
        return name == own or (self.description.guessed and name.lower() in ("id", "ids"))

    def _places(self, name: str, at: Reference, array: NDArray[Any]) -> NDArray[np.int64] | None:
        """Where each sample is in a file, -1 for nowhere; ``None`` where both have one order."""
        content, count = self._content(at), len(self.target)
        ids = self._ids(content)
        if ids is not None and len(array) != len(ids):
            raise unfit(name, content.path, f"{len(ids)} samples, as many as identifiers", array)
        if ids is None or self.order is None or len(self.order) != count:
            if len(array) != count:
                raise unfit(name, content.path, f"{count} samples, as many as `target` has", array)
            if self.order is not None and ids is None:
                of = "the target" if self.own_ids is not None else "the others"
                self.notes.append(
                    f"{at.file} has no identifiers: its rows are taken in the order of {of}."
                )
            return None
        if ids == self.order:
            return None
        return self._reordered(ids, content)

    def _reordered(self, ids: Sequence[str], content: FileContent) -> NDArray[np.int64]:
        place, wanted = {name: row for row, name in enumerate(ids)}, self.order or []
        lacking = [name for name in wanted if name not in place]
        extra = sorted({*ids} - {*wanted}, key=place.__getitem__)
        if self.own_ids is None:
            what = "Expected the identifiers of the other files in their order, because the target "
            what += "has none, but found others or another order."
            raise DataError("array id", content.path, what, "Give the target identifiers.")
        strange = [
            *([f"{len(lacking)} samples are not in it, such as {lacking[0]!r}"] if lacking else []),
            *([f"{len(extra)} of its rows have no target, such as {extra[0]!r}"] if extra else []),
        ]
        if strange and (self.missing == "refuse" or len(lacking) == len(wanted)):
            what = f"Expected the identifiers of the target, but {' and '.join(strange)}."
            fix = "Correct them, or give --missing absent: such samples lack the modality."
            raise DataError("array id", content.path, what, fix)
        self.notes += [f"{content.path.name}: {text}." for text in strange]
        if not strange:
            self.notes.append(f"{content.path.name}: rows were put into the target's order.")
        return np.array([place.get(name, -1) for name in wanted], dtype=np.int64)

    def _beside(self, name: str, at: Reference | None) -> NDArray[Any] | None:
        """One entry per sample of another array, in the order of the samples."""
        if at is None:
            return None
        array = self._array(at)
        if array.ndim != 1:
            raise unfit(name, self._content(at).path, "one entry per sample, shape (N,)", array)
        empty = [row for row, value in enumerate(array) if plain_text(value) in ("", "nan")]
        if empty:
            what = f"Expected an entry for every sample, but {len(empty)} are empty, the first in "
            what += f"row {empty[0]} (from 0)."
            raise DataError(f"array {name}", self._content(at).path, what, "Fill them in.")
        places = self._places(name, at, array)
        if places is None:
            return array
        if (places < 0).any():
            what = f"Expected an entry for every sample, but {int((places < 0).sum())} have none."
            raise DataError(f"array {name}", self._content(at).path, what, "Add them.")
        return array[places]

    def _modality(self, name: str, source: ModalitySource) -> ArrayModality:
        content = self._content(source.at)
        # Encoders are kept in a ModuleDict, which takes neither dots nor its own attributes.
        if not re.fullmatch(r"\w+", name) or hasattr(nn.ModuleDict, name):
            what = f"Expected names of letters, digits and _, but found the modality {name!r}."
            raise DataError(
                f"array {name}", content.path, what, f"Rename it, or write a {DESCRIPTION}."
            )
        columns = self._columns(content, source) if content.is_table else ()
        values = stacked_columns(content, columns) if columns else self._array(source.at)
        if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or not values.size:
            raise unfit(name, content.path, "numbers of shape (N, D) or (N, T, D)", values)
        if values.shape[-1] % source.steps or (source.steps > 1 and values.ndim == 3):
            expected = f"rows (N, D) whose D is a multiple of {source.steps} steps"
            raise unfit(name, content.path, expected, values)
        places, mask = self._places(name, source.at, values), self._mask(name, source, values)
        if places is not None:
            there = np.broadcast_to((places >= 0)[:, None], (len(places), _steps(values)))
            mask = there if mask is None else there & mask
            values = values[places]
        return ArrayModality(content.path, values, mask, columns, source.steps)

    def _mask(
        self, name: str, source: ModalitySource, values: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        """Real steps of a modality, in the order of the samples; none where a file has no entry."""
        at = source.lengths or source.mask
        if at is None:
            return None
        found, where, steps = self._array(at), self._content(at).path, _steps(values)
        label = f"{name}.{'lengths' if source.lengths else 'mask'}"
        if not found.ndim:
            raise unfit(label, where, "one entry per sample", found)
        places = self._places(label, at, found)
        if places is not None:
            there = (places >= 0).reshape(-1, *[1] * (found.ndim - 1))
            found = np.where(there, found[places], np.zeros_like(found[:1]))
        if source.lengths is not None:
            if values.ndim != 3 or found.dtype.kind not in "iu" or found.ndim != 1:
                expected = f"whole numbers beside sequences {name!r} (N, T, D)"
                raise unfit(label, where, expected, found)
            if found.min() < 0 or found.max() > steps:
                what = f"Expected lengths from 0 to {steps}, the steps of {name!r}, but found "
                what += f"{found.min()} to {found.max()}."
                raise DataError(f"array {label}", where, what, "Correct the lengths.")
            return np.asarray(np.arange(steps) < found[:, None])
        shaped = found.reshape(len(found), -1)
        whole = found.dtype.kind in "biu" and bool(np.isin(found, (0, 1)).all())
        if not whole or shaped.shape[1] not in (1, steps):
            raise unfit(label, where, f"zeros and ones of shape (N, {steps}) or (N,)", found)
        return np.broadcast_to(shaped.astype(bool), (len(found), steps))

    def _columns(self, content: FileContent, source: ModalitySource) -> tuple[str, ...]:
        """Names of the columns of a table that are features."""
        patterns = (source.at.name,) if source.at.name is not None else source.columns
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in content.arrays):
                known = ", ".join(content.arrays)
                what = f"Expected a column {pattern!r}, but it has {known}."
                raise DataError(str(self.folder), content.path, what, f"Correct {DESCRIPTION}.")
        if patterns:
            chosen = [n for n in content.arrays if any(fnmatchcase(n, p) for p in patterns)]
            if self.source.at.file == content.path.name:
                self._refuse_target(content, chosen)
            return tuple(chosen)
        described = self.description
        spoken = [described.split, described.group, *(t.at for t in described.targets.values())]
        others = {at.name for at in spoken if at is not None and at.file == content.path.name}
        features = tuple(
            name for name in content.arrays if name not in others and not self._identifies(name)
        )
        self._refuse_identifiers(content, features)
        return features

    def _refuse_target(self, content: FileContent, features: Sequence[str]) -> None:
        if self.source.at.name in features:
            what = f"Expected columns of features, but {self.source.at.name!r} is the target."
            fix = f"Leave it out of `columns` in {DESCRIPTION}."
            raise DataError(f"column {self.source.at.name}", content.path, what, fix)

    def _refuse_identifiers(self, content: FileContent, features: Sequence[str]) -> None:
        """Refuse columns that number or name samples: a network would learn them by heart."""
        for name in features:
            values = content.arrays[name]
            counts = values.dtype.kind in "iu" and len(values) >= _FEWEST
            counts = counts and np.ptp(values) == len(values) - 1 == len({*values.tolist()}) - 1
            if counts or _ID_NAME.fullmatch(name):
                found = (
                    "numbers the rows without a gap" if counts else "is called like an identifier"
                )
                what = f"Expected columns of features, but {name!r} {found}."
                fix = f"Write `id: {name or repr(name)}` into {DESCRIPTION} if it identifies "
                fix += "samples, remove it, or list the `columns` of the modality there."
                raise DataError(f"column {name}", content.path, what, fix)


def _steps(values: NDArray[Any]) -> int:
    return values.shape[1] if values.ndim == 3 else 1
