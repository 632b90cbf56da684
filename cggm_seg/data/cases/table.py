"""Table of cases: a CSV file with one case, or one patient, per line."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cggm.errors import DataError
from cggm_seg.data.cases.case import MODALITIES, Case
from cggm_seg.data.cases.naming import naming_of
from cggm_seg.data.cases.search import find_cases
from cggm_seg.data.labels import BRATS2021, BRATS2023, LabelScheme

COLUMNS = ("case", *MODALITIES)
"""Columns of a table; those of modalities may be left out."""

_FORBIDDEN = set('/\\:*?"<>|')  # in names of files, on some system


def find_input(
    path: Path, *, modalities: Sequence[str] = MODALITIES, labels: LabelScheme | None = None
) -> tuple[list[Case], list[DataError]]:
    """The cases of a table, ``.csv``, of a folder of cases or of the folder of one case.

    Label maps are ignored, and a case may lack modalities.

    Args:
        path: The table or folder.
        modalities: Those that are needed, where no file must be taken for absent that is not.
        labels: What the values of predicted label maps are to mean; as the names tell where not
            given.

    Returns:
        The cases sorted by identifier, and one error for each of the others.

    Raises:
        DataError: If there is no such table or folder, or nothing that can be used in it.
    """
    if path.suffix.lower() == ".csv":
        cases, errors = read_table(path)
        return [replace(case, labels=labels or case.labels) for case in cases], errors
    return find_cases(
        path, labelled=False, allow_missing=True, modalities=modalities, labels=labels
    )


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
    (number, header), *rows = _read(table, ", ".join(COLUMNS))
    columns = [name.strip() for name in header]
    _check_columns(table, number, columns)
    cases: dict[str, Case] = {}
    lines: dict[str, int] = {}
    errors: list[DataError] = []
    for line, cells in rows:
        try:
            case = _listed_case(table, line, columns, cells)
            if case.id in cases:
                what = f"expected every case once, but line {lines[case.id]} has it as well."
                raise _cell_error(table, line, "case", case.id, what)
            cases[case.id], lines[case.id] = case, line
        except DataError as error:
            errors.append(error)
    return [cases[case_id] for case_id in sorted(cases)], errors


def read_patients(table: Path, case_ids: Sequence[str]) -> dict[str, str]:
    """Reads who was examined: a CSV table with the columns ``case`` and ``patient``.

    Args:
        table: UTF-8 text, cells separated by commas; other columns and cases are passed over.
        case_ids: The cases whose patients are wanted.

    Returns:
        Case to patient.

    Raises:
        DataError: If the table cannot be read, lacks a column, or does not tell the patient of a
            case.
    """
    (line, header), *rows = _read(table, "case, patient")
    columns = [name.strip().lower() for name in header]
    if not {"case", "patient"} <= set(columns):
        what = (
            f"Line {line}: expected the columns case and patient, but found {', '.join(columns)}."
        )
        raise DataError(str(table), None, what, "Name the columns so, and separate them by commas.")
    case, patient = columns.index("case"), columns.index("patient")
    known = {
        cells[case].strip(): cells[patient].strip()
        for _, cells in rows
        if len(cells) == len(columns)
    }
    for case_id in case_ids:
        if not known.get(case_id):
            what = f"Expected the patient of this case in {table}, but found none."
            raise DataError(case_id, None, what, "Add a line for it.")
    return {case_id: known[case_id] for case_id in case_ids}


def _read(table: Path, columns: str) -> list[tuple[int, list[str]]]:
    """The lines with something in them, with their numbers; at least two."""
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
        raise DataError(str(table), None, what, f"Name the columns {columns}.")
    return lines


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
        raise _cell_error(table, line, "case", name or f"line {line}", what)
    images = {m: table.parent / row[m] for m in MODALITIES if m in row}
    if not images:
        what = f"line {line}: expected at least one image, but all cells are empty."
        raise DataError(name, table, what, "Give an image, or remove the line.")
    _check_files(table, line, name, images)
    schemes = [scheme for file in images.values() if (scheme := naming_of(file))]
    labels = BRATS2023 if schemes[:1] == ["2023"] else BRATS2021
    return Case(name, images, None, labels)


def _check_files(table: Path, line: int, name: str, images: Mapping[str, Path]) -> None:
    owners: dict[Path, str] = {}
    for modality, file in images.items():
        if not file.is_file():
            what = f"expected an image, but there is no file {file}."
            raise _cell_error(table, line, modality, name, what)
        other = owners.setdefault(file.resolve(), modality)
        if other != modality:
            what = f"expected one file for each image, but {file} is in column {other} as well."
            raise _cell_error(table, line, modality, name, what)


def _cell_error(table: Path, line: int, column: str, case_id: str, what: str) -> DataError:
    return DataError(case_id, table, f"line {line}, column {column}: {what}", "Correct the cell.")
