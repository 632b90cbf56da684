"""Guess of what a folder of arrays holds, by the names of files, arrays and columns alone."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cggm.errors import DataError
from cggm_cls.data.arrays.description import (
    DESCRIPTION,
    LAYOUT,
    Description,
    ModalitySource,
    Reference,
    TargetSource,
)
from cggm_cls.data.arrays.files import FileContent

_ROLES = {
    **dict.fromkeys(("target", "targets", "label", "labels"), "target"),
    **dict.fromkeys(("id", "ids"), "id"),
    **dict.fromkeys(("group", "groups"), "group"),
    "split": "split",
}
_BESIDE = re.compile(r"(.+)[._](lengths|mask)")


def is_about_samples(file: Path, name: str) -> bool:
    """Whether a column is no feature, judged by its name and that of its file.

    Args:
        file: The table.
        name: Of the column.
    """
    return name.lower() in _ROLES or _ROLES.get(file.stem.lower()) == "target"


def guess_description(folder: Path, contents: Sequence[FileContent]) -> Description:
    """What the names of files, arrays and columns say.

    Arrays and columns called ``target``, ``label``, ``id``, ``split`` or ``group`` are that; so are
    the columns of a table ``labels`` or ``targets`` that are nothing else. ``ecg.lengths`` and
    ``ecg.mask`` belong to ``ecg``. Every other array, and every other table, is a modality.

    Args:
        folder: Where they lie, for the messages.
        contents: Its files.

    Raises:
        DataError: If there is no target or no modality, or two of one name.
    """
    found = _Guess(folder)
    for content in contents:
        found.add_table(content) if content.is_table else found.add_arrays(content)
    found.attach()
    if not found.targets or not found.modalities:
        names = ", ".join(sorted(content.path.name for content in contents)) or "none"
        arrays = ", ".join(sorted({*found.modalities, *found.targets, *found.others})) or "none"
        what = f"Expected `target` and at least one modality, but found the arrays {arrays}"
        raise DataError(str(folder), None, f"{what} (files: {names}).", LAYOUT)
    return Description(
        dict(sorted(found.modalities.items())),
        found.targets,
        ids=found.others.get("id"),
        split=found.others.get("split"),
        group=found.others.get("group"),
        guessed=True,
    )


class _Guess:
    """What was found so far.

    Args:
        folder: For the messages.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modalities: dict[str, ModalitySource] = {}
        self.targets: dict[str, TargetSource] = {}
        self.others: dict[str, Reference] = {}
        self.beside: dict[str, Reference] = {}

    def add_table(self, content: FileContent) -> None:
        file = content.path.name
        is_labels = _ROLES.get(content.path.stem.lower()) == "target"
        features = []
        for name in content.arrays:
            role = _ROLES.get(name.lower())
            at = Reference(file, name)
            if role == "id":
                continue  # found by its name, in every file
            if is_labels and not name:
                what = "Expected a name for each column, but one has none, as a written index has."
                raise DataError(str(self.folder), content.path, what, "Call it `id`, or remove it.")
            if role == "target" or (is_labels and role is None):
                self._keep(self.targets, name, TargetSource(at))
            elif role is not None:
                self._keep(self.others, role, at)
            else:
                features.append(name)
        if features:
            self._keep(self.modalities, content.path.stem, ModalitySource(Reference(file)))

    def add_arrays(self, content: FileContent) -> None:
        alone = len(content.arrays) == 1
        for key in content.arrays:
            # A file of one array has its name, unless that of the array says more: y.npz, target.
            name = content.path.stem if alone and key.lower() not in _ROLES else key
            role = _ROLES.get(name.lower())
            at = Reference(content.path.name, key)
            if role == "target":
                self._keep(self.targets, name, TargetSource(at))
            elif role == "id" and not alone:
                continue
            elif role is not None:
                self._keep(self.others, role, at)
            elif _BESIDE.fullmatch(name):
                self._keep(self.beside, name, at)
            else:
                self._keep(self.modalities, name, ModalitySource(at))

    def attach(self) -> None:
        """Give lengths and masks to their modalities; without one they are modalities."""
        for name, at in self.beside.items():
            of, what = _BESIDE.fullmatch(name).groups()  # type: ignore[union-attr]
            source = self.modalities.get(of)
            if source is None or source.lengths or source.mask:
                expected = f"Expected whole numbers beside sequences {of!r} (N, T, D)"
                found = "there is no such modality" if source is None else "it has two such arrays"
                fix = f"Remove it, or say in {DESCRIPTION} what it is."
                raise DataError(
                    f"array {name}", self.folder / at.file, f"{expected}, but {found}.", fix
                )
            self.modalities[of] = (
                replace(source, lengths=at) if what == "lengths" else replace(source, mask=at)
            )

    def _keep(self, kept: dict[str, Any], name: str, value: Any) -> None:  # noqa: ANN401
        if name in kept:
            first = kept[name]
            one, other = (getattr(v, "at", v) for v in (first, value))
            what = f"Expected one {name}, but found it in {one} and in {other}."
            fix = f"Rename or remove one, or say in {DESCRIPTION} what is what."
            raise DataError(str(self.folder), None, what, fix)
        kept[name] = value
