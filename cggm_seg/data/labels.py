"""Label schemes: which class each value of a segmentation file stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cggm.errors import UserError
from cggm.runs import parse_json
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.nifti import Volume

CLASS_CODES = ("background", "NCR", "ED", "ET")
"""Background, necrotic or non-enhancing core, edema, enhancing tumor, as classes 0 to 3."""

_ROUNDING = 1e-5  # of labels that were stored as floating-point numbers
_LARGEST_ROUNDING = 0.25  # from which on a label might as well be an interpolated one


@dataclass(frozen=True)
class LabelScheme:
    """What the values of label maps mean.

    Attributes:
        name: What ``--labels`` calls it; for a mapping the mapping itself.
        classes: Pairs of a value in the file and the class, 0 to 3, that it stands for. Of several
            values of one class the first is the one that is written.
        meaning: The values in words, for people who have to choose.
        rivals: Schemes of which this one is the combination, where names and contents do not tell
            which of them holds; its files are refused until somebody says it.
    """

    name: str
    classes: tuple[tuple[int, int], ...]
    meaning: str = ""
    rivals: tuple["LabelScheme", ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """All values that a file may hold, ascending."""
        return tuple(sorted(value for value, _ in self.classes))

    def file_values(self) -> np.ndarray:
        """The value that is written for each of the four classes, uint8.

        Raises:
            UserError: If there is none for a class, or nobody has said which scheme it is.
        """
        if self.rivals:
            what = f"Expected to know the label scheme, but it may be {_readings(self.rivals)}."
            raise UserError(what, f"Say it with --labels {_choices(self.rivals)}.")
        written = {c: value for value, c in reversed(self.classes)}
        lacking = [CLASS_CODES[c] for c in range(len(CLASS_CODES)) if c not in written]
        if lacking:
            what = f"Expected a label for each class, but {self.name} has none for {lacking[0]}."
            raise UserError(what, "Add it to --labels.")
        return np.array([written[c] for c in range(len(CLASS_CODES))], np.uint8)


BRATS2021 = LabelScheme(
    "brats2021", ((0, 0), (1, 1), (2, 2), (4, 3)), "1 necrosis, 2 edema, 4 enhancing tumor"
)
BRATS2023 = LabelScheme(
    "brats2023", ((0, 0), (1, 1), (2, 2), (3, 3)), "1 necrosis, 2 edema, 3 enhancing tumor"
)
BRATS_PED = LabelScheme(
    "brats-ped",
    ((0, 0), (1, 3), (2, 1), (3, 1), (4, 2)),
    "1 enhancing, 2 non-enhancing tumor, 3 cyst, 4 edema",
)
BRATS2013 = LabelScheme(
    "brats2013",
    ((0, 0), (1, 1), (2, 2), (3, 1), (4, 3)),
    "1 necrosis, 2 edema, 3 non-enhancing tumor, which counts as 1, 4 enhancing tumor",
)
BRATS2024 = LabelScheme(
    "brats2024",
    ((0, 0), (1, 1), (2, 2), (3, 3), (4, 0)),
    "1 necrosis, 2 edema, 3 enhancing tumor, 4 resection cavity, which counts as background",
)
SCHEMES = {s.name: s for s in (BRATS2021, BRATS2023, BRATS_PED, BRATS2013, BRATS2024)}
"""Label schemes by the name that ``--labels`` takes."""


def in_doubt(*rivals: LabelScheme) -> LabelScheme:
    """A scheme whose files are refused, with all readings, because any of several may hold."""
    values = sorted({value for scheme in rivals for value in scheme.values})
    classes = tuple((value, 0) for value in values)
    return LabelScheme(" or ".join(scheme.name for scheme in rivals), classes, rivals=rivals)


def label_scheme(text: str | None) -> LabelScheme | None:
    """The scheme that an option names; ``None`` where it is not given.

    Args:
        text: A name of :data:`SCHEMES`, or pairs such as ``1=NCR,2=ED,3=ET,4=background``, also as
            a JSON object, with classes by name or number. 0 is background unless said otherwise.

    Raises:
        UserError: If it is neither.
    """
    if text is None or text in SCHEMES:
        return SCHEMES.get(text or "")
    try:
        pairs = parse_json(text) if text.lstrip().startswith("{") else _pairs(text)
        mapping = {0: 0, **{int(value): _class(name) for value, name in pairs.items()}}
    except (ValueError, AttributeError) as error:
        what = f"Expected --labels to name a label scheme or to map values, but got {text!r}."
        fix = f"Give one of {', '.join(SCHEMES)}, or pairs such as 1=NCR,2=ED,4=ET."
        raise UserError(what, fix) from error
    if not 0 <= min(mapping) <= max(mapping) <= 255 or set(mapping.values()) == {0}:
        what = "Expected --labels to map values from 0 to 255, not all of them to background, "
        raise UserError(f"{what}but got {text!r}.", "Give pairs such as 1=NCR,2=ED,4=ET.")
    words = ", ".join(f"{value} {CLASS_CODES[c]}" for value, c in mapping.items() if value)
    return LabelScheme(text, tuple(mapping.items()), words)


def scheme_of_names(names: Mapping[str, Any]) -> LabelScheme | None:
    """The scheme that the ``labels`` of a ``dataset.json`` describe, as nnU-Net and MSD write it.

    Args:
        names: Name to value, value to name, or region to values, such as ``"tumor core": [2, 3]``.

    Returns:
        ``None`` where a name says nothing of the classes, or a value is no number.
    """
    regions: dict[int, list[int]] = {}
    for key, content in names.items():
        # MSD writes value to name, nnU-Net name to value.
        name, value = (str(content), key) if key.isdecimal() else (key, content)
        values, region = value if isinstance(value, list) else [value], _region(name)
        if region is None or not all(str(number).isdecimal() for number in values):
            return None
        regions.setdefault(region, []).extend(map(int, values))
    classes = dict.fromkeys(regions.get(0, [0]), 0)
    # A region is given by all of its values: the smaller one, coming later, decides.
    for region in (2, 1, 3):
        classes |= dict.fromkeys(regions.get(region, []), region)
    if not set(classes.values()) >= {2, 3}:
        return None
    return label_scheme(
        ",".join(f"{value}={CLASS_CODES[c]}" for value, c in sorted(classes.items()))
    )


def to_classes(case_id: str, file: Path, volume: Volume, scheme: LabelScheme) -> np.ndarray:
    """Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, of the labels that a file holds.

    A value that a file's own scaling moved is the label that it stands for: the integers of a file
    with ``scl_slope`` are multiples of it, which need not be whole.

    Args:
        case_id: Named in errors.
        file: The label map, named in errors.
        volume: Its content.
        scheme: What the values mean.

    Raises:
        Finding: If a label is unknown, or two schemes explain the labels.
    """
    values = volume.array
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        # A scaled file holds multiples of its slope: 4 of 255 steps leave 1.992 of a 2.
        tolerance = min(_ROUNDING + 1.01 * volume.rounding, _LARGEST_ROUNDING)
        values = np.where(np.abs(values - rounded) < tolerance, rounded, values)
    flat = values.ravel(order="K")  # selects 9 times faster than a 3-D array
    found = np.unique(flat[flat != 0])
    if not np.isin(found, scheme.values).all() or (scheme.rivals and found.size):
        raise _refusal(case_id, file, volume, scheme, found)
    table = np.zeros(max(scheme.values) + 1, np.uint8)
    for value, number in scheme.classes:
        table[value] = number
    if (table == np.arange(table.size)).all():
        return values.astype(np.uint8)
    return table[values.astype(np.uint8)]


def _refusal(
    case_id: str, file: Path, volume: Volume, scheme: LabelScheme, found: np.ndarray
) -> Finding:
    unknown = np.setdiff1d(found, scheme.values)
    if not np.isfinite(unknown).all():
        code, fix = Code.NOT_FINITE, "Export the label map again, or leave the case out."
    elif (unknown != np.rint(unknown)).any():
        code, fix = Code.FRACTIONAL_LABEL, _fractional_fix(volume)
    else:
        readings = scheme.rivals or _explaining(found)
        code = Code.OTHER_SCHEME if readings else Code.UNKNOWN_LABEL
        fix = (
            f"Say which with --labels: {_readings(readings)}."
            if readings
            else "Say what they mean with --labels, such as 1=NCR,2=ED,7=ET, or leave the case out."
        )
    shown = ", ".join(f"{value:g}" for value in (unknown if unknown.size else found)[:5])
    what = f"Expected labels of {scheme.name}, {scheme.values}, but found {shown}."
    if not unknown.size:
        what = f"Expected labels of one meaning, but found {shown}, which may be {scheme.name}."
    return Finding(code, case_id, file, what, fix)


def _fractional_fix(volume: Volume) -> str:
    if not volume.rounding:
        return "Round the labels where they were resampled, or leave the case out."
    return (
        f"The file is scaled by scl_slope, in steps of {2 * volume.rounding:g}: "
        "save it as uint8 without scaling."
    )


def _explaining(found: np.ndarray) -> list[LabelScheme]:
    """The schemes that know these labels; of those that read them alike the first."""
    readings: dict[tuple[int, ...], LabelScheme] = {}
    for scheme in SCHEMES.values():
        if np.isin(found, scheme.values).all():
            known = dict(scheme.classes)
            readings.setdefault(tuple(known[int(value)] for value in found), scheme)
    return list(readings.values())


def _readings(schemes: Sequence[LabelScheme]) -> str:
    return " or ".join(f"{scheme.name} ({scheme.meaning})" for scheme in schemes)


def _choices(schemes: Sequence[LabelScheme]) -> str:
    return " or ".join(scheme.name for scheme in schemes)


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    return {value.strip(): name.strip() for value, name in pairs}


def _class(name: str | int) -> int:
    by_name = {word.lower(): number for number, word in enumerate(CLASS_CODES)}
    number = by_name.get(str(name).lower())
    number = int(name) if number is None else number
    if number not in range(len(CLASS_CODES)):
        raise ValueError(name)
    return number


def _region(name: str) -> int | None:
    """The class of a name, or that of its innermost part where it names a region."""
    letters = "".join(letter for letter in name.lower() if letter.isalpha())
    words = {
        "background": 0,
        "nonenhanc": 1,  # before "enhanc", which is a part of it
        "enhanc": 3,
        **dict.fromkeys(("necro", "cyst", "ncr", "netc", "tumorcore", "tumourcore"), 1),
        **dict.fromkeys(("edema", "wholetum", "snfh"), 2),
    }
    exact = {"ed": 2, "et": 3, "wt": 2, "tc": 1, "net": 1, "nc": 1}
    found = [number for word, number in words.items() if word in letters]
    return found[0] if found else exact.get(letters)
