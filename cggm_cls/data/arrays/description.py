"""Description of a folder of arrays, ``dataset.yaml``: what is a modality, a target, a split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from cggm.errors import UserError
from cggm.runs import check_form, read_yaml
from cggm_cls.data.arrays.files import is_array_file

LAYOUT = (
    "Give a folder with target.npy and an array for each modality, such as ecg.npy, with "
    "train.npz, valid.npz and test.npz that hold them, or with a dataset.yaml that says so."
)
DESCRIPTION = "dataset.yaml"
SHARES = {"valid": Fraction("0.15"), "test": Fraction("0.15")}
"""Of the samples, or of the groups, where splits are drawn."""

Kind = Literal["classes", "numbers"]

_REFERENCE = (str, {"at": str, "kind?": str})
_MODALITY = {
    "file": str,
    "columns?": (str, [str]),
    "steps?": int,
    "lengths?": str,
    "mask?": str,
}
_FORM: dict[str, Any] = {
    "modalities": {"*": (str, _MODALITY)},
    "targets?": {"*": _REFERENCE},
    "target?": _REFERENCE,
    "id?": str,
    "split?": str,
    "group?": str,
    "sample?": str,
    "draw?": {"valid": float, "test": float},
}


@dataclass(frozen=True)
class Reference:
    """An array or a column in a file, written ``labels.csv:age``.

    Args:
        file: Name of the file.
        name: Of the array or column; ``None`` for the only one, or for all columns of a table.
    """

    file: str
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read ``FILE`` or ``FILE:NAME``.

        Args:
            text: As written in a description.
        """
        file, _, name = text.partition(":")
        return cls(file.strip(), name.strip() or None)

    def __str__(self) -> str:
        return self.file if self.name is None else f"{self.file}:{self.name}"


@dataclass(frozen=True)
class ModalitySource:
    """Where a modality comes from.

    Args:
        at: An array, or a table.
        columns: Names of a table's columns that are features, or patterns with ``*``; all that
            are nothing else where empty.
        steps: Equal parts that the features of a row are cut into, as steps of a sequence.
        lengths: How many steps of each sequence are real.
        mask: Which steps are, or which samples have the modality.
    """

    at: Reference
    columns: tuple[str, ...] = ()
    steps: int = 1
    lengths: Reference | None = None
    mask: Reference | None = None


@dataclass(frozen=True)
class TargetSource:
    """Where a target comes from.

    Args:
        at: An array or a column.
        kind: What it is; judged by its values where ``None``.
    """

    at: Reference
    kind: Kind | None = None


@dataclass(frozen=True)
class Description:
    """What a folder holds.

    Args:
        modalities: By name, in the order of the network.
        targets: By name, of which a training takes one.
        target: The one that it takes where not told otherwise.
        id_name: Name of the column or array, in any file, that identifies samples.
        ids: Identifiers of the rows of all files that have none of their own.
        split: Which split each sample is in; drawn where ``None``.
        group: Whose samples stay in one split.
        shares: Of the samples, or groups, for validation and test, where splits are drawn.
        sample: What a sample is called that has no identifier.
        guessed: Whether names of files alone say all this.
    """

    modalities: Mapping[str, ModalitySource]
    targets: Mapping[str, TargetSource]
    target: str | None = None
    id_name: str = "id"
    ids: Reference | None = None
    split: Reference | None = None
    group: Reference | None = None
    shares: Mapping[str, Fraction] = field(default_factory=lambda: SHARES)
    sample: str = "sample"
    guessed: bool = False

    @property
    def files(self) -> list[str]:
        """Names of all files that are spoken of, each once."""
        found = [source.at for source in self.modalities.values()]
        found += [source.at for source in self.targets.values()]
        others = [self.ids, self.split, self.group]
        for source in self.modalities.values():
            others += [source.lengths, source.mask]
        return [*dict.fromkeys(r.file for r in [*found, *others] if r is not None)]

    def chosen(self, target: str | None, where: Path) -> str:
        """Name of the target to train on.

        Args:
            target: The one that is asked for.
            where: The folder, for the message.

        Raises:
            UserError: If there is none of that name, or several and none is asked for.
        """
        known, name = ", ".join(self.targets), target or self.target
        if name is None and len(self.targets) > 1:
            what = f"{where}: expected one target, but found {known}."
            raise UserError(what, f"Choose one with --target, or by `target:` in {DESCRIPTION}.")
        if name is not None and name not in self.targets:
            what = f"{where}: expected a target of {known}, but got {name}."
            raise UserError(what, "Correct --target.")
        return name or next(iter(self.targets))


def read_description(folder: Path) -> Description | None:
    """What ``dataset.yaml`` says, ``None`` where there is none.

    Args:
        folder: The folder of the data.

    Raises:
        UserError: If it cannot be read, lacks something, or has a key too many.
    """
    file = folder / DESCRIPTION
    if not file.exists():
        return None
    content = read_yaml(file)
    _check_keys(content, _FORM, file, "")
    check_form(content, _FORM, file)
    for name, source in content["modalities"].items():
        if isinstance(source, dict):
            _check_keys(source, _MODALITY, file, f"{name}: ")
    target = content.get("target")
    targets = content.get("targets", {})
    if isinstance(target, dict) or (target is not None and target not in targets):
        if targets:
            what = f"{file}: expected `target` to be one of {', '.join(targets)}, but got {target}."
            raise UserError(what, "Correct it.")
        targets, target = {"target": target}, None
    if not targets or not content["modalities"]:
        what = f"{file}: expected at least one modality and one target."
        raise UserError(what, "Name them, as in target: labels.csv:diagnosis.")
    identity = content.get("id", "id")
    own_file = is_array_file(Path(Reference.parse(identity).file))
    return Description(
        {str(n): _modality(n, source, file) for n, source in content["modalities"].items()},
        {str(name): _target(name, source, file) for name, source in targets.items()},
        target=target,
        id_name="id" if own_file else identity,
        ids=Reference.parse(identity) if own_file else None,
        split=_optional(content.get("split")),
        group=_optional(content.get("group")),
        shares=_shares(content.get("draw"), file),
        sample=content.get("sample", "sample"),
    )


def _check_keys(content: Any, form: Mapping[str, Any], file: Path, place: str) -> None:  # noqa: ANN401
    known = [key.rstrip("?") for key in form]
    for key in content if isinstance(content, dict) else ():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            fix = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise UserError(f"{file}: {place}unknown key {key!r}.", fix)


def _modality(name: str, source: Any, file: Path) -> ModalitySource:  # noqa: ANN401
    if isinstance(source, str):
        return ModalitySource(Reference.parse(source))
    if source.get("steps", 1) < 1 or int(source.get("steps", 1)) != source.get("steps", 1):
        what = f"{file}: {name}: expected `steps` to be a whole number of at least 1."
        raise UserError(what, "Correct it.")
    if "lengths" in source and "mask" in source:
        what = f"{file}: {name}: expected `lengths` or `mask`, but got both."
        raise UserError(what, "Leave one out.")
    columns = source.get("columns", ())
    return ModalitySource(
        Reference.parse(source["file"]),
        columns=(columns,) if isinstance(columns, str) else tuple(columns),
        steps=source.get("steps", 1),
        lengths=_optional(source.get("lengths")),
        mask=_optional(source.get("mask")),
    )


def _target(name: str, source: Any, file: Path) -> TargetSource:  # noqa: ANN401
    if isinstance(source, str):
        return TargetSource(Reference.parse(source))
    kind = source.get("kind")
    if kind not in (None, "classes", "numbers"):
        what = f"{file}: {name}: expected `kind` to be classes or numbers, but got {kind}."
        raise UserError(what, "Correct it.")
    return TargetSource(Reference.parse(source["at"]), kind)


def _optional(text: str | None) -> Reference | None:
    return None if text is None else Reference.parse(text)


def _shares(given: Mapping[str, float] | None, file: Path) -> dict[str, Fraction]:
    if given is None:
        return SHARES
    if not (min(given.values()) > 0 and sum(given.values()) < 1):  # NaN is neither
        what = f"{file}: expected shares above 0 and together below 1, but got {dict(given)}."
        raise UserError(what, "Correct `draw`.")
    # As written, 0.3 being three tenths and not the nearest binary number.
    return {split: Fraction(str(given[split])) for split in SHARES}
