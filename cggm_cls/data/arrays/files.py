"""Files of arrays in six formats that nobody vouches for; nothing in them is unpickled or run."""

import csv
import math
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError, UserError

Arrays = Mapping[str, NDArray[Any]]

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
"""Endings of files that run code when they are read, and are not."""

_LARGEST = 2**36  # bytes that a file may declare; a compressed one can declare anything
_DEEPEST = 5  # groups of an HDF5 file in each other; hard links can form circles
_NO_VALUE = {"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None"}
_TRUTHS = {"True": True, "true": True, "False": False, "false": False}
# What the readers raise for headers and contents that are none.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, OverflowError, TypeError, KeyError, RuntimeError),
    *(TokenError, zipfile.BadZipFile, csv.Error, MemoryError, IndexError),
)


@dataclass(frozen=True)
class FileContent:
    """The arrays of one file.

    Args:
        path: The file.
        arrays: Name to array; that of a ``.npy`` file has the file's name without its ending.
            Texts of ``.h5`` and columns of text are arrays of Python strings.
        is_table: Whether they are the columns of one table.
    """

    path: Path
    arrays: Arrays
    is_table: bool = False


def is_array_file(path: Path) -> bool:
    """Whether a file has the ending of a format that is read.

    Args:
        path: The file.
    """
    return path.suffix.lower() in _READERS


def read_array_file(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    """Read one file.

    Args:
        path: ``.npy`` (mapped into memory), ``.npz``, ``.csv``, ``.parquet``, ``.h5`` or
            ``.safetensors``.
        as_text: Whether a column of a CSV file, by its name, is kept as it is written, so that an
            identifier ``007`` stays one.

    Raises:
        DataError: If it is absent, damaged or holds objects, declares more than any memory holds,
            or a table has no header or one name twice.
        UserError: If a package that the format needs is not installed.
    """
    if not is_array_file(path):
        what = f"Expected a file that ends in {', '.join(_READERS)}."
        raise DataError(str(path.parent), path, what, "Correct its name, or write it as one.")
    try:
        content = _READERS[path.suffix.lower()](path, as_text)
        if not content.arrays:
            raise ValueError("it holds none")
        return content
    except FileNotFoundError as error:
        what = "Expected this file, but there is none."
        raise DataError(str(path.parent), path, what, "Correct its name, or add it.") from error
    except _UNREADABLE as error:
        what = f"Expected arrays of numbers or text, but the file cannot be read ({error})."
        fix = "Write it again as plain numbers and texts, without objects"
        if isinstance(error, UnicodeDecodeError):
            fix = "Save it as UTF-8"
        elif "object" in str(error).lower():
            fix += "; sequences of unequal length as (N, T, D), zeros at their ends, with their "
            fix += f"lengths in {path.stem}.lengths.npy"
        raise DataError(str(path.parent), path, what, f"{fix}.") from error


def plain_text(value: Any) -> str:  # noqa: ANN401
    """A class, a group or an identifier as text, in which one letter is one character.

    Args:
        value: Text, bytes or a number of numpy.
    """
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return unicodedata.normalize("NFC", text)  # what two systems may write unlike each other


def refuse_empty(values: Sequence[str], what: str, where: Path) -> None:
    """Refuse texts of which one or more are empty.

    Args:
        values: A text of each row.
        what: What they are, for the message.
        where: Their file.

    Raises:
        DataError: If there is an empty one.
    """
    empty = [row for row, value in enumerate(values) if not value]
    if empty:
        found = f"Expected a value in every row, but {len(empty)} are empty, the first in row "
        fix = "Fill them in, or leave the rows out."
        raise DataError(what, where, f"{found}{empty[0]} (from 0).", fix)


def stacked_columns(content: FileContent, columns: Sequence[str]) -> NDArray[Any]:
    """Columns of a table side by side, ``(N, D)``; texts that are numbers count as such.

    Args:
        content: The table.
        columns: Their names, of which none may hold text.
    """
    found = []
    for name in columns:
        column = content.arrays[name]
        if column.dtype.kind == "O":
            column = converted_texts(column, f"column {name}", content.path)
        if column.dtype.kind not in "biuf":
            raise _no_numbers(content, name)
        found.append(column)
    return np.stack(found, axis=1)


def converted_texts(texts: NDArray[Any], what: str, where: Path) -> NDArray[Any]:
    """Whole numbers, numbers or texts, whatever an array of texts holds throughout.

    Args:
        texts: Python strings, of which none may be empty.
        what: What they are, for the message.
        where: Their file.
    """
    values = [plain_text(value) for value in texts.ravel()]
    refuse_empty(values, what, where)
    for kind in (int, float):
        # Python reads 1_0 as a number, and 007 as the same one as 7.
        if any("_" in value for value in values):
            break
        try:
            found = np.array([kind(value) for value in values])
        except (ValueError, OverflowError):
            continue
        if found.dtype.kind == "f" or len({*values}) == len({*found.tolist()}):
            return found.reshape(texts.shape)
    return np.array(values).reshape(texts.shape)


def _no_numbers(content: FileContent, name: str) -> DataError:
    """A refusal of a column that holds text, with the first one of it."""
    values = [plain_text(value) for value in content.arrays[name]]
    row = next((n for n, value in enumerate(values) if not _is_number(value)), 0)
    found = f"{name!r} holds {values[row][:40]!r} in row {row} (from 0)"
    fix = "Write it as numbers, such as a column of 0 and 1 for each value"
    if _is_number(values[row].replace(".", "").replace(",", ".")):
        fix = "Write numbers with a decimal point, and without signs between thousands"
    elif len({*values}) == len(values) > 1:
        fix = f"Write `id: {name}` into dataset.yaml if it identifies samples, or remove it"
    fix += "; or list the `columns` of the modality in dataset.yaml."
    what = f"Expected columns of numbers, but {found}."
    return DataError(f"column {name}", content.path, what, fix)


def _read_npy(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    # A mapping cannot be larger than its file, whatever the header declares.
    return FileContent(path, {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)})


def _read_npz(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    with zipfile.ZipFile(path) as archive:
        _check_size(sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        return FileContent(path, {name: arrays[name] for name in arrays.files})


def _read_safetensors(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as tensors:
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    half = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in found.items()}
    return FileContent(path, {name: tensor.numpy() for name, tensor in half.items()})


def _read_h5(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    import h5py

    with h5py.File(path, "r") as root:
        found = dict(_datasets(root, "", 0))
        _check_size(sum(d.size * d.dtype.itemsize for d in found.values()))
        return FileContent(path, {name: _values(d) for name, d in found.items()})


def _datasets(group: Any, above: str, depth: int) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """The arrays of an HDF5 group by their paths, without following what leaves the file."""
    import h5py

    for name in group:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{above}{name} is a link that may leave the file")
        node = group[name]
        if isinstance(node, h5py.Group):
            if depth == _DEEPEST:
                raise ValueError(f"{above}{name} is nested deeper than {_DEEPEST} groups")
            yield from _datasets(node, f"{above}{name}/", depth + 1)
        elif isinstance(node, h5py.Dataset):
            if node.is_virtual or node.external is not None or node.shape is None:
                raise ValueError(f"{above}{name} is a view of other files, or empty")
            yield f"{above}{name}", node


def _values(dataset: Any) -> NDArray[Any]:  # noqa: ANN401
    import h5py

    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    values: NDArray[Any] = dataset.asstr()[()] if is_text else dataset[()]
    if values.dtype.kind == "O" and not is_text:
        raise ValueError(f"{dataset.name} holds objects")
    return values


def _check_size(declared: int) -> None:
    if declared > _LARGEST:
        raise ValueError(f"it declares {declared / 2**30:.0f} GiB")


def _read_csv(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    # By hand, because pandas fills short rows and cuts long ones without a word.
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        head = [name.strip() for name in next(lines, [])]
        _check_head(path, head)
        rows = []
        for row in lines:
            if row and len(row) != len(head):
                what = f"Expected {len(head)} values in every row, but line {lines.line_num} has "
                fix = "Correct the line, or quote values that hold a comma."
                raise DataError(str(path.parent), path, f"{what}{len(row)}.", fix)
            rows.append(row)
    columns = zip(*filter(None, rows), strict=True) if any(rows) else ((),) * len(head)
    arrays = {
        name: _parsed([*map(str.strip, cells)], as_text(name))
        for name, cells in zip(head, columns, strict=True)
    }
    return FileContent(path, arrays, is_table=True)


def _parsed(cells: list[str], is_text: bool) -> NDArray[Any]:
    """Numbers, where all cells hold one or none, else texts; both as they are written."""
    if not is_text and {*cells} <= _TRUTHS.keys():
        return np.array([_TRUTHS[cell] for cell in cells])
    # Python reads 1_0 as a number.
    if is_text or any("_" in cell for cell in cells):
        return np.array(cells, dtype=object)
    with suppress(ValueError, OverflowError):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    with suppress(ValueError):
        return np.array([math.nan if cell in _NO_VALUE else float(cell) for cell in cells])
    return np.array(cells, dtype=object)


def _check_head(path: Path, head: list[str]) -> None:
    if len(head) == 1 and any(sign in head[0] for sign in ";\t"):
        what = "Expected columns separated by commas, but found semicolons or tabs in line 1."
        fix = "Save it with commas between columns and points in numbers."
        raise DataError(str(path.parent), path, what, fix)
    repeated = sorted({name for name in head if head.count(name) > 1})
    # Of an array that pandas wrote columns are called 0, 1, 2 and so on.
    counted = head in ([str(n + first) for n in range(len(head))] for first in (0, 1))
    numbers = not counted and all(map(_is_number, head))
    if not head or repeated or numbers:
        found = "no header" if not head else f"{repeated[0]!r} twice" if repeated else "numbers"
        what = f"Expected a first line with a name for each column, but found {found}."
        raise DataError(str(path.parent), path, what, "Add a header with different names.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, as_text: Callable[[str], bool]) -> FileContent:
    if not find_spec("pandas") or not any(map(find_spec, ("pyarrow", "fastparquet"))):
        raise UserError(
            f"{path}: expected a package that reads Parquet, but found none.",
            'Install one with pip install "cggm[arrays]", or write the table as CSV.',
        )
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # both readers raise errors of their own
        raise ValueError(str(error)) from error
    if table.index.name is not None:  # an index that pandas kept is a column like the others
        table = table.reset_index()
    columns = {str(name): _column(table[name]) for name in table.columns}
    return FileContent(path, columns, is_table=True)


def _column(column: Any) -> NDArray[Any]:  # noqa: ANN401
    """Numbers as such, where missing ones are NaN, and all else as Python strings."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return np.asarray(column.to_numpy(dtype=bool))
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        kind = column.dtype.kind if not column.isna().any() else "f"
        values = column.to_numpy(dtype=np.int64) if kind == "i" else column.to_numpy(dtype=float)
        return np.asarray(values)
    texts = ["" if value is None or value is pd.NA else value for value in column.tolist()]
    empty = ["" if isinstance(text, float) and np.isnan(text) else text for text in texts]
    return np.array([plain_text(text) for text in empty], dtype=object)


_READERS: Mapping[str, Callable[[Path, Callable[[str], bool]], FileContent]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".safetensors": _read_safetensors,
}
