"""Finds the BraTS cases of a folder, in the naming schemes of 2021 and of 2023."""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cggm.errors import DataError
from cggm_seg.data.findings import Code, Finding

Naming = Literal["2021", "2023"]

MODALITIES = ("flair", "t1ce", "t1", "t2")

_SUFFIXES: dict[Naming, dict[str, str]] = {
    "2021": {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2", "seg": "_seg"},
    "2023": {"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w", "seg": "-seg"},
}
_PARTS: dict[str, tuple[Naming, str]] = {
    suffix: (naming, part)
    for naming, suffixes in _SUFFIXES.items()
    for part, suffix in suffixes.items()
}
_FILE_NAME = re.compile(rf"(?P<id>[^.].*)(?P<suffix>{'|'.join(_PARTS)})\.nii(\.gz)?")
_DEEPEST = 2  # <folder>/<group>/<case>/<file>


@dataclass(frozen=True)
class Case:
    """The files of one examination.

    Attributes:
        id: Identifier, the part that the file names share.
        images: Modality to file, in the order of ``MODALITIES``.
        label: The segmentation, or ``None``.
        naming: Scheme of the file names, which decides the label values.
    """

    id: str
    images: Mapping[str, Path]
    label: Path | None
    naming: Naming


@dataclass(frozen=True)
class _Found:
    naming: Naming
    part: str
    file: Path


def find_cases(
    folder: Path, *, labelled: bool, allow_missing: bool = False
) -> tuple[list[Case], list[DataError]]:
    """Finds every case in a folder, in its subfolders and in theirs.

    File names decide, contents are not read. Hidden files and other files are ignored.

    Args:
        folder: Where ``<id>_flair.nii.gz`` (2021) or ``<id>-t2f.nii.gz`` (2023) and so on lie,
            ``.nii`` or ``.nii.gz``, all in one folder or in one folder per case.
        labelled: Whether every case must have a label map; if not, label maps are ignored.
        allow_missing: Whether a case may lack modalities.

    Returns:
        The complete cases sorted by identifier, and one error for each of the others.

    Raises:
        DataError: If the folder does not exist, cannot be read, is empty or holds no case.
    """
    cases: list[Case] = []
    errors: list[DataError] = []
    required = [*(() if allow_missing else MODALITIES), *(["seg"] if labelled else [])]
    for case_id, found in sorted(_group(folder).items()):
        case, problems = _case(case_id, found, required)
        if not labelled:
            case = replace(case, label=None)
        if not case.images and not labelled:
            problems.append(_missing(case_id, MODALITIES[0], found[0]))
        if problems:
            errors.append(problems[0])
        else:
            cases.append(case)
    return cases, errors


def naming_of(file: Path) -> Naming | None:
    """The scheme that a file is named by, or ``None`` for a name of another kind."""
    match = _FILE_NAME.fullmatch(file.name)
    return _PARTS[match["suffix"]][0] if match else None


def survey_cases(folder: Path) -> list[tuple[Case, list[Finding]]]:
    """Finds every case in a folder, with whatever files it has, and all that is missing.

    Use :func:`find_cases` for what can be trained on.

    Args:
        folder: As in :func:`find_cases`.

    Returns:
        Cases sorted by identifier, and for each one finding per file that is missing or ambiguous.
        A label map is missing where another case has one.

    Raises:
        DataError: If the folder does not exist, cannot be read, is empty or holds no case.
    """
    groups = _group(folder)
    labelled = any(item.part == "seg" for found in groups.values() for item in found)
    required = [*MODALITIES, *(["seg"] if labelled else [])]
    return [_case(case_id, found, required) for case_id, found in sorted(groups.items())]


def _group(folder: Path) -> dict[str, list[_Found]]:
    try:
        files = sorted(_files(folder, _DEEPEST))
    except OSError as error:
        what = f"Expected a folder, but {error.filename} cannot be read ({error.strerror})."
        raise DataError(str(folder), None, what, "Check the path and its permissions.") from error
    groups = defaultdict(list)
    for file in files:
        if match := _FILE_NAME.fullmatch(file.name):
            groups[match["id"]].append(_Found(*_PARTS[match["suffix"]], file))
    if not groups:
        content = f"{len(files)} other files" if files else "no file"
        raise DataError(
            str(folder),
            None,
            f"Expected BraTS cases, but found {content}.",
            "Name the files <case>_flair.nii.gz, _t1ce, _t1, _t2, _seg (2021) or "
            "<case>-t2f.nii.gz, -t1c, -t1n, -t2w, -seg (2023), in this folder or in one per case.",
        )
    return groups


def _files(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield Path(entry.path)
            elif depth and entry.is_dir():
                yield from _files(Path(entry.path), depth - 1)


def _case(
    case_id: str, found: Sequence[_Found], required: Sequence[str]
) -> tuple[Case, list[Finding]]:
    naming = found[0].naming
    by_part: dict[str, Path] = {}
    problems = []
    for item in found:
        other = by_part.setdefault(item.part, item.file)
        if other != item.file:
            problems.append(_ambiguous(case_id, other, item.file))
        elif item.naming != naming:
            problems.append(_ambiguous(case_id, found[0].file, item.file))
    problems += [_missing(case_id, part, found[0]) for part in required if part not in by_part]
    images = {modality: by_part[modality] for modality in MODALITIES if modality in by_part}
    return Case(case_id, images, by_part.get("seg"), naming), problems


def _missing(case_id: str, part: str, sibling: _Found) -> Finding:
    suffix = _SUFFIXES[sibling.naming][part]
    ending = ".nii.gz" if sibling.file.suffix == ".gz" else ".nii"
    what = "label map" if part == "seg" else f"{part} image"
    return Finding(
        Code.MISSING,
        case_id,
        sibling.file.with_name(f"{case_id}{suffix}{ending}"),
        f"Expected the {what} of this case, but there is no such file.",
        "Add the file, or take the case out of the folder.",
    )


def _ambiguous(case_id: str, one: Path, other: Path) -> Finding:
    what = f"Expected one file for each image, but found {one} as well."
    fix = "Remove one of the two, or rename its case."
    return Finding(Code.AMBIGUOUS, case_id, other, what, fix)


COLUMNS = ("case", *MODALITIES)
"""Columns of a table; those of modalities may be left out."""

_FORBIDDEN = set('/\\:*?"<>|')  # in names of files, on some system


def find_input(path: Path) -> tuple[list[Case], list[DataError]]:
    """The cases of a table, ``.csv``, of a folder of cases or of the folder of one case.

    Labels are ignored, and a case may lack modalities.

    Returns:
        The cases sorted by identifier, and one error for each of the others.

    Raises:
        DataError: If there is no such table or folder, or nothing that can be used in it.
    """
    if path.suffix.lower() == ".csv":
        return read_table(path)
    return find_cases(path, labelled=False, allow_missing=True)


def read_table(table: Path) -> tuple[list[Case], list[DataError]]:
    """Reads a CSV table with one case per line.

    The first line names the columns: ``case`` and any of ``flair``, ``t1ce``, ``t1``, ``t2``. Paths
    are absolute, or relative to the table; an empty cell stands for an absent modality. Label maps
    get the values of 2023 where the first image of the case is named as in 2023, else of 2021.

    Args:
        table: UTF-8 text, cells separated by commas.

    Returns:
        The cases sorted by identifier, and one error for each line that is none.

    Raises:
        DataError: If the table cannot be read, its columns are others, or no line follows.
    """
    columns, rows = _read(table)
    cases: dict[str, Case] = {}
    lines: dict[str, int] = {}
    errors: list[DataError] = []
    for line, cells in rows:
        try:
            case = _listed_case(table, line, columns, cells)
            if case.id in cases:
                what = f"expected every case once, but line {lines[case.id]} has it as well."
                raise _fault(table, line, "case", case.id, what)
            cases[case.id], lines[case.id] = case, line
        except DataError as error:
            errors.append(error)
    return [cases[case_id] for case_id in sorted(cases)], errors


def _read(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a BOM
            lines = [*_lines(file)]
    except OSError as error:
        what = f"Expected a table of cases, but it cannot be read ({error.strerror})."
        raise DataError(str(table), None, what, "Check the path and its permissions.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        what = f"Expected a CSV table in UTF-8, but got: {error}."
        raise DataError(str(table), None, what, "Save it as CSV in UTF-8.") from error
    if len(lines) < 2:
        what = f"Expected a line of column names and one for each case, but found {len(lines)}."
        raise DataError(str(table), None, what, f"Name the columns {', '.join(COLUMNS)}.")
    columns = [name.strip() for name in lines[0][1]]
    _check_columns(table, lines[0][0], columns)
    return columns, lines[1:]


def _lines(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines with something in them, with their numbers."""
    reader = csv.reader(file, strict=True)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


def _check_columns(table: Path, line: int, columns: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in COLUMNS]
    double = [name for name in columns if columns.count(name) > 1]
    if unknown or double:
        name = (unknown or double)[0]
        problem = f"column {name!r} is {'unknown' if unknown else 'there twice'}"
    elif "case" not in columns or len(columns) < 2:
        problem = f"found only {', '.join(columns)}"
    else:
        return
    what = f"Line {line}: expected the columns {', '.join(COLUMNS)}, but {problem}."
    fix = "Name the columns so, separate them by commas and remove others."
    raise DataError(str(table), None, what, fix)


def _listed_case(table: Path, line: int, columns: Sequence[str], cells: Sequence[str]) -> Case:
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}
    name = row.get("case", "")
    if len(cells) != len(columns):
        what = f"line {line}: expected {len(columns)} cells, but found {len(cells)}."
        raise DataError(name or f"line {line}", table, what, "Add or remove commas.")
    if not name or name.startswith(".") or _FORBIDDEN & set(name) or not name.isprintable():
        what = f"expected an identifier that can name a file, but got {name!r}."
        raise _fault(table, line, "case", name or f"line {line}", what)
    images = {m: table.parent / row[m] for m in MODALITIES if m in row}
    if not images:
        what = f"line {line}: expected at least one image, but all cells are empty."
        raise DataError(name, table, what, "Give an image, or remove the line.")
    _check_files(table, line, name, images)
    schemes = [scheme for file in images.values() if (scheme := naming_of(file))]
    return Case(name, images, None, schemes[0] if schemes else "2021")


def _check_files(table: Path, line: int, name: str, images: Mapping[str, Path]) -> None:
    owners: dict[Path, str] = {}
    for modality, file in images.items():
        if not file.is_file():
            what = f"expected an image, but there is no file {file}."
            raise _fault(table, line, modality, name, what)
        other = owners.setdefault(file.resolve(), modality)
        if other != modality:
            what = f"expected one file for each image, but {file} is in column {other} as well."
            raise _fault(table, line, modality, name, what)


def _fault(table: Path, line: int, column: str, case_id: str, what: str) -> DataError:
    return DataError(case_id, table, f"line {line}, column {column}: {what}", "Correct the cell.")
