"""Naming schemes: which image of which case a file is, by its name alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cggm.runs import parse_json
from cggm_seg.data.cases.case import MODALITIES
from cggm_seg.data.labels import (
    BRATS2021,
    BRATS2023,
    BRATS_PED,
    SCHEMES,
    LabelScheme,
    in_doubt,
    scheme_of_names,
)

Naming = Literal["2021", "2023"]

SUFFIXES: dict[Naming, dict[str, str]] = {
    "2021": {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2", "seg": "_seg"},
    "2023": {"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w", "seg": "-seg"},
}
"""How file names end in the releases of BraTS."""

# What the field calls its images besides, in lower case and without separators.
_WORDS = {
    "flair": ("flair", "t2f", "t2flair", "flairt2", "fla"),
    "t1ce": (
        *("t1ce", "t1c", "t1gd", "t1gad", "t1post", "t1wpost", "t1contrast", "t1wce", "t1wc"),
        *("t1km", "ct1", "t1cw", "t1postcontrast", "t1wgd"),
    ),
    "t1": ("t1", "t1n", "t1w", "t1pre", "t1wpre", "t1native"),
    "t2": ("t2", "t2w", "t2tse"),
    "seg": (
        *("seg", "segm", "segmentation", "segmentations", "tumorseg", "tumorsegmentation"),
        *("bratstumorseg", "tumormask", "label", "labels", "labelmap", "groundtruth"),
        "glistrboostmanuallycorrected",
    ),
}
_PARTS = {word: part for part, words in _WORDS.items() for word in words}
_LONGEST = 3  # pieces of a name that together are a word, such as t1_post_contrast
# How such words begin; c_t1 is the T1 of case c, not CT1.
_BEGINNINGS = ("t1", "t2", "fl", "seg", "tumor", "brats", "label", "ground", "glistr")

_OFFICIAL = {s: naming for naming, suffixes in SUFFIXES.items() for s in suffixes.values()}
_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# Other formats of images, and NIfTI that has to be unpacked first.
_OTHER_FORMAT = re.compile(
    r"\.(mha|mhd|nrrd|nhdr|mgz|mgh|mnc|hdr|img|dcm)$|^[^.]+\.gz$|"
    r"\.nii(\.gz)?\.(bz2|xz|zst|zip|7z|part|partial|filepart|crdownload|download|tmp|gpg)$",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[-_. ]")
# BIDS names a contrast agent apart from the image: sub-1_ce-gadolinium_T1w, or _ce-gd_run-1_T1w.
_WITH_AGENT = re.compile(r"[-_]ce-[a-z0-9]+(_[a-z]+-[a-z0-9]+)*_t1w$", re.IGNORECASE)
# Words before that of a T1 which make a T1ce of it, or may: a_gd_t1w, sub-1_acq-postgd_T1w.
_CONTRAST = re.compile(
    r"(?<![a-z])(post)?(ce|c\+|gd|gad\w*|gado\w*|contrast\w*|kontrast\w*|km|enhanced)$",
    re.IGNORECASE,
)
_AFTER_CONTRAST = re.compile(
    r"(?<![a-z])(post\w*|ce|c\+|gd|gad\w*|contrast\w*|kontrast\w*|km|enhanced)(?![a-z])",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
# BraTS-PED-00001-000: identifiers of cases whose label values changed between releases.
_PEDIATRIC = re.compile(r"(?<![a-z])peds?(?![a-z])|pediatric", re.IGNORECASE)


@dataclass(frozen=True)
class NamedFile:
    """A file whose name says what it is.

    Attributes:
        id: Identifier of its case; empty where the name is that of a modality alone, so that the
            folder has to tell.
        part: Its modality, or ``seg``.
        file: The file.
        naming: Release of BraTS whose scheme the name follows to the letter, else ``None``.
        pattern: The name with ``*`` for the identifier.
        patient: Who was examined, where a folder says it.
    """

    id: str
    part: str
    file: Path
    naming: Naming | None
    pattern: str
    patient: str = ""

    @property
    def words_of_2023(self) -> bool:
        """Whether the word for its modality is one that BraTS uses since 2023 alone."""
        stem = _ENDING.sub("", self.pattern.lower())
        return stem.endswith(("t2f", "t1c", "t1n", "t2w"))


def is_volume(file: Path) -> bool:
    """Whether a file is a NIfTI file by its ending, in capital letters as well."""
    return bool(_ENDING.search(file.name))


def is_image(file: Path) -> bool:
    """Whether a file is a volume, in NIfTI or another format, by its ending."""
    return is_volume(file) or bool(_OTHER_FORMAT.search(file.name))


def names_modality(file: Path) -> bool:
    """Whether a part of a name is the word for a modality, such as in ``case_t1ce_brain``."""
    pieces = _SEPARATOR.split(_ENDING.sub("", file.name.lower()))
    return any(_PARTS.get(piece) in MODALITIES for piece in pieces)


def read_name(file: Path) -> NamedFile | None:
    """What a file is, by its name; ``None`` where no scheme or word of the field fits."""
    name, found = file.name, _ENDING.search(file.name)
    if name.startswith(".") or not found:
        return None
    stem, ending = name[: found.start()], found[0]
    if agent := _WITH_AGENT.search(stem):
        return NamedFile(stem[: agent.start()], "t1ce", file, None, f"*{agent[0]}{ending}")
    start, part = _last_word(stem)
    if part:
        case_id, suffix = stem[: max(start - 1, 0)], stem[max(start - 1, 0) :]
        if part == "t1" and len(_SEPARATOR.split(case_id)) > 1 and _CONTRAST.search(case_id):
            return None
        exact = start > 1 and ending in (".nii", ".nii.gz")
        official = _OFFICIAL.get(suffix) if exact else None
        return NamedFile(case_id, part, file, official, f"*{suffix}{ending}" if start else name)
    match = _CHANNEL.fullmatch(stem)
    if match and (channel := _channels(file.parent).get(int(match["channel"]))):
        return NamedFile(match["id"], channel, file, None, f"*_{match['channel']}{ending}")
    if file.parent.name.startswith("labels") and _channels(file.parent):
        return NamedFile(stem, "seg", file, None, f"{file.parent.name}/*{ending}")
    return None


def is_of(folder: Path, part: str) -> bool:
    """Whether a folder is called after an image, such as ``1_T1`` or ``T1_post``."""
    return _last_word(folder.name)[1] == part


def may_be_contrast(text: str) -> bool:
    """Whether a part of a name may say that a T1 was taken after contrast agent: ``acq-post``."""
    return bool(_AFTER_CONTRAST.search(text))


def naming_of(file: Path) -> Naming | None:
    """The release of BraTS whose scheme a file's name follows to the letter, if any."""
    named = read_name(file)
    return named.naming if named else None


def default_labels(found: list[NamedFile]) -> LabelScheme:
    """The label scheme that the names of a case tell.

    Pediatric cases had the labels of 2023 in that year and have had their own since, under the same
    names: without further evidence they are in doubt. nnU-Net says it in its ``dataset.json``.

    Args:
        found: The files of the case, at least one.
    """
    if any(_CHANNEL.fullmatch(_ENDING.sub("", item.file.name)) for item in found):
        described = scheme_of_names(_table(_dataset(found[0].file.parent), "labels"))
        return described or in_doubt(*SCHEMES.values())
    if _PEDIATRIC.search(found[0].id):
        return in_doubt(BRATS_PED, BRATS2023)
    votes = [item.words_of_2023 for item in found if item.part in MODALITIES]
    if not votes:  # a label map alone
        return BRATS2023 if found[0].naming == "2023" else BRATS2021
    return BRATS2023 if 2 * sum(votes) > len(votes) else BRATS2021


def part_of_word(word: str) -> str | None:
    """The modality that a word of the field means, in any case and with any separators."""
    return _PARTS.get(_SEPARATOR.sub("", word).lower())


def _last_word(stem: str) -> tuple[int, str | None]:
    """Where the word for an image at the end of a name begins, and which image it is."""
    starts = [0, *(match.end() for match in _SEPARATOR.finditer(stem))]
    for start in starts[-_LONGEST:]:  # the longest word first: t2_flair before flair
        word = _SEPARATOR.sub("", stem[start:]).lower()
        whole = start == starts[-1] or word.startswith(_BEGINNINGS)
        if word in _PARTS and whole:
            return start, _PARTS[word]
    return 0, None


def _channels(folder: Path) -> dict[int, str]:
    """Channel number to modality, as the ``dataset.json`` in the folder or above it says."""
    content = _dataset(folder)
    names = _table(content, "channel_names") or _table(content, "modality")
    numbered = {int(k): part_of_word(str(word)) for k, word in names.items() if k.isdecimal()}
    return {number: part for number, part in numbered.items() if part in MODALITIES}


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table in a ``dataset.json``; empty where it has none, as in those of other programs."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


@cache
def _dataset(folder: Path) -> dict[str, Any]:
    for file in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            content = parse_json(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return {}


def forget_datasets() -> None:
    """Has every ``dataset.json`` read again, because a new search begins."""
    _dataset.cache_clear()
