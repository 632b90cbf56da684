"""Lists of the samples of UPMC Food-101, in the three variants that are in circulation.

``train.json`` is CGGM's, ``train.jsonl`` that of MMBT, ``texts/train_titles.csv`` the original one.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cggm.errors import DataError
from cggm.runs import parse_json

_HEADER = ["image_path", "text", "label"]
_FIX = (
    "Give the folder with train.json and test.json, or train.jsonl and test.jsonl, or "
    "texts/train_titles.csv and texts/test_titles.csv."
)

Rows = Iterator[tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class FoodRecord:
    """One sample as it is listed.

    Attributes:
        id: Identifier, unlike that of any other sample.
        text: Recipe or title; may be empty.
        image: Path of the image, relative to the root.
        label: Name of the class.
    """

    id: str
    text: str
    image: str
    label: str


def read_variant(root: Path) -> tuple[str, dict[str, list[FoodRecord]]]:
    """List the samples of a folder in whichever variant it holds.

    ``train.json`` comes before ``train.jsonl`` and that before ``texts/train_titles.csv`` where a
    folder holds several. Images are not looked at.

    Args:
        root: The folder.

    Returns:
        Name of the variant, and the samples of ``train`` and ``test``, and of ``dev`` if there is a
        list of that name, such as ``dev.jsonl``.

    Raises:
        DataError: If no variant is there, or a list is missing, malformed or empty.
    """
    for variant, (pattern, read) in _VARIANTS.items():
        files = {split: root / pattern.format(split) for split in ("train", "test", "dev")}
        if not files["dev"].exists():
            del files["dev"]
        if any(file.exists() for file in files.values()):
            return variant, {split: _records(file, split, read) for split, file in files.items()}
    raise DataError(str(root), None, "Expected the lists of UPMC Food-101, but found none.", _FIX)


def _records(file: Path, split: str, read: Callable[[Path, str, str], Rows]) -> list[FoodRecord]:
    try:
        text = file.read_text("utf-8-sig")
        records = [_record(row, file, number) for number, row in read(file, split, text)]
    except OSError as error:
        what = f"Expected the list of the {split} split, but it cannot be read ({error.strerror})."
        raise DataError("Food-101", file, what, _FIX) from error
    except (ValueError, RecursionError, csv.Error) as error:
        what = f"Expected a list of samples, but the file is malformed ({error})."
        raise DataError("Food-101", file, what, "Restore the file.") from error
    if not records:
        raise DataError("Food-101", file, "Expected samples, but found none.", "Restore the file.")
    return records


def _read_json(file: Path, split: str, text: str) -> Rows:
    rows = parse_json(text)
    if not isinstance(rows, list):
        raise ValueError(f"a {type(rows).__name__} where a list was expected")
    for number, row in enumerate(rows):
        tokens = _fields(file, number, row, "text_tokens", "img_path")["text_tokens"]
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise _malformed(file, number, "`text_tokens` to be a list of words")
        yield number, {**row, "text": " ".join(tokens), "img": row["img_path"]}


def _read_jsonl(file: Path, split: str, text: str) -> Rows:
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _malformed(file, number, "a JSON object", line) from error
        yield number, _fields(file, number, row, "text", "img")


def _read_csv(file: Path, split: str, text: str) -> Rows:
    """Rows of image, text and label; the files in circulation have no header, some copies do."""
    order = _HEADER
    for number, row in enumerate(csv.reader(io.StringIO(text, newline=""))):
        names = [name.strip().lower() for name in row]
        if number == 0 and sorted(names) == sorted(_HEADER):  # a copy with a header
            order = names
            continue
        if len(row) != len(order):
            raise _malformed(file, number, "the columns image, text and label")
        image, title, label = (dict(zip(order, row, strict=True))[name] for name in _HEADER)
        # The original lists name the image alone, which lies in the folder of its class.
        path = image if "/" in image else f"images/{split}/{label}/{image}"
        yield number, {"id": PurePosixPath(image).stem, "text": title, "img": path, "label": label}


_VARIANTS: dict[str, tuple[str, Callable[[Path, str, str], Rows]]] = {
    "json": ("{}.json", _read_json),
    "jsonl": ("{}.jsonl", _read_jsonl),
    "csv": ("texts/{}_titles.csv", _read_csv),
}


def _fields(file: Path, number: int, row: object, *names: str) -> Mapping[str, Any]:
    if not isinstance(row, dict) or not {"id", "label", *names} <= row.keys():
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise _malformed(file, number, f"the keys id, label, {', '.join(names)}", found)
    return row


def _record(row: Mapping[str, Any], file: Path, number: int) -> FoodRecord:
    name, image, label = (_word(row, key, file, number) for key in ("id", "img", "label"))
    text = "" if row["text"] is None else row["text"]
    if not isinstance(text, str):
        raise _malformed(file, number, "`text` to be text", text)
    return FoodRecord(name, text.encode(errors="replace").decode(), image, label)


def _word(row: Mapping[str, Any], key: str, file: Path, number: int) -> str:
    value = str(row[key]) if type(row[key]) is int else row[key]
    if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_utf8(value):
        raise _malformed(file, number, f"`{key}` to be a word", value)
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(
    file: Path, number: int, expected: str, found: object = "something else"
) -> DataError:
    what = f"Expected {expected}, but found {str(found)[:80]!r}."
    return DataError(f"record {number + 1}", file, what, "Correct this record.")
