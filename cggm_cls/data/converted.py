"""Stores of a data set that was converted from one file: written once, then read in its place.

A store is a folder with a safetensors file per split, the identifiers and a manifest, which holds
the digests of the other files and of the file that all came from. Opening a store checks them and
maps the values into memory; the original file, which may be a pickle, is not touched again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cggm.errors import DataError, UserError
from cggm.runs import file_digest, new_folder, parse_json, write_json
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData

FORMAT = 1
"""Raised by hand whenever the files change, or what is made of a file."""

_MANIFEST = "manifest.json"
_IDS = "ids.json"
_SPLITS = ("train", "valid", "test")
_FILES = (_IDS, *(f"{split}.safetensors" for split in _SPLITS))
_AGAIN = "Delete the folder to convert the file again, or give another one with --store."


@dataclass(frozen=True)
class Source:
    """The file that a store was made from.

    Attributes:
        name: Of the file, without its folder.
        size: Bytes.
        modified: Nanoseconds since 1970.
        sha256: Of the content, hexadecimal.
    """

    name: str
    size: int
    modified: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> "Source":
        """Describe a file, which is read to its end.

        Args:
            file: The file as it is now.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            found = file.stat()
            return cls(file.name, found.st_size, found.st_mtime_ns, file_digest(file))
        except OSError as error:
            what = f"Expected a file, but it cannot be read ({error.strerror})."
            raise DataError(file.name, file, what, "Check the path and its permissions.") from error


@dataclass(frozen=True)
class _Manifest:
    format: int
    source: Source
    digest: str
    classes: int | None
    simulated: bool
    notes: list[str]
    modalities: dict[str, int]  # in their order, which safetensors does not keep
    samples: dict[str, int]
    files: dict[str, str]


def open_converted(file: Path, store: Path | None, read: Callable[[Path], TaskData]) -> TaskData:
    """Convert a file on first use; later read what it was converted to, and that alone.

    Args:
        file: The file, which may be gone once it was converted, or the folder of a store.
        store: Folder of the store; ``<file>.converted`` beside the file where ``None``.
        read: Reads the file.

    Returns:
        The splits, mapped into memory.

    Raises:
        DataError: If the file cannot be read, or the store is damaged.
        UserError: If the store cannot be written, or was made from another file.
    """
    if file.is_dir():
        return read_store(file)
    folder = store or file.with_name(f"{file.name}.converted")
    if not is_store(folder):
        _convert(file, folder, read)
    elif file.exists() and not store_matches(folder, file):
        made = _read_manifest(folder).source
        what = f"made from another file ({made.name}, {made.size} bytes) than {file} is now."
        raise UserError(f"{folder}: {what}", _AGAIN)
    return read_store(folder)


def is_store(folder: Path) -> bool:
    """Whether a folder holds a store, judged by its manifest being there.

    Args:
        folder: Any folder, or none.
    """
    return (folder / _MANIFEST).is_file()


def store_matches(folder: Path, file: Path) -> bool:
    """Whether a store was made from a file, judged by size and time, or else by content.

    A file replaced by one of the same size and modification time, to the nanosecond, goes
    unnoticed.

    Args:
        folder: The store.
        file: The file; read only if its size is the same and its time is not.

    Raises:
        DataError: If the manifest is damaged, or the file cannot be read.
    """
    made, found = _read_manifest(folder).source, file.stat()
    if found.st_size != made.size:
        return False
    return found.st_mtime_ns == made.modified or file_digest(file) == made.sha256


def write_store(folder: Path, data: TaskData, source: Source) -> None:
    """Keep the splits of a task in a folder that appears complete or not at all.

    Args:
        folder: Where; absent or empty.
        data: The splits, with one view of each sample.
        source: What they were read from.

    Raises:
        UserError: If the folder holds something, or cannot be written.
        ValueError: If samples have several views.
    """
    with _new_store(folder) as draft:
        _write(draft, data, source)


def read_store(folder: Path) -> TaskData:
    """Open a store; every file is checked against its digest.

    Args:
        folder: The store.

    Returns:
        The splits, whose values are mapped into memory and read when used.

    Raises:
        DataError: If it is no store, one of another version, incomplete or damaged.
    """
    manifest = _read_manifest(folder)
    for name in _FILES:
        _check(folder / name, manifest.files.get(name))
    try:
        ids = parse_json((folder / _IDS).read_bytes())
        splits = {name: _read_split(folder, name, manifest, ids[name]) for name in _SPLITS}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"its files do not fit together ({error})") from error
    return TaskData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=manifest.classes,
        digest=manifest.digest,
        simulated=manifest.simulated,
        notes=tuple(manifest.notes),
    )


def _arrays(split: SequenceDataset) -> dict[str, NDArray[Any]]:
    if any(views != 1 for views in split.views.values()):
        raise ValueError(f"Expected one view of each sample, but got {dict(split.views)}.")
    tensors = {"target": split.target}
    for name, sequences in split.inputs.items():
        tensors |= {f"{name}.values": sequences.values, f"{name}.offsets": sequences.offsets}
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def _read_split(folder: Path, name: str, manifest: _Manifest, ids: list[str]) -> SequenceDataset:
    with safe_open(folder / f"{name}.safetensors", "pt") as tensors:
        inputs = {
            modality: RaggedSequences(
                tensors.get_tensor(f"{modality}.values"), tensors.get_tensor(f"{modality}.offsets")
            )
            for modality in manifest.modalities
        }
        split = SequenceDataset(inputs, tensors.get_tensor("target"), ids)
    if split.widths != manifest.modalities or len(split) != manifest.samples[name]:
        raise ValueError(f"{name} has {len(split)} samples of {split.widths}")
    return split


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / _MANIFEST
    try:
        content: dict[str, Any] = parse_json(file.read_bytes())
        seal = content.pop("sha256")
        manifest = _Manifest(**{**content, "source": Source(**content["source"])})
    except FileNotFoundError as error:
        what = f"Expected a converted copy, but there is no {_MANIFEST}."
        raise DataError(
            str(folder), None, what, "Give the file itself, or such a folder."
        ) from error
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, "it is no manifest of this version") from error
    if manifest.format != FORMAT:
        raise _damaged(file, f"it has version {manifest.format} instead of {FORMAT}")
    if seal != _seal(content):
        raise _damaged(file, "its content was changed")
    return manifest


def _check(file: Path, digest: str | None) -> None:
    try:
        found = file_digest(file)
    except OSError as error:
        raise _damaged(file, f"it cannot be read ({error.strerror})") from error
    if found != digest:
        raise _damaged(file, "its content was changed or cut short")


def _damaged(path: Path, found: str) -> DataError:
    what = f"Expected a converted copy as it was written, but {found}."
    return DataError(path.name, path, what, _AGAIN)


def _seal(content: Mapping[str, Any]) -> str:
    """Digest of the manifest itself, which stands in its last line."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _convert(file: Path, folder: Path, read: Callable[[Path], TaskData]) -> None:
    source = Source.of(file)  # before reading: a file that changes meanwhile no longer matches
    try:
        with _new_store(folder) as draft:  # before reading, too, which may take minutes
            print(f"converting {file} ({source.size / 1e6:.1f} MB) to {folder}, once", flush=True)
            _write(draft, read(file), source)
    except UserError:
        if not (is_store(folder) and store_matches(folder, file)):  # another process was faster
            raise


def _write(draft: Path, data: TaskData, source: Source) -> None:
    splits: dict[str, SequenceDataset] = {name: getattr(data, name) for name in _SPLITS}
    try:
        for name, split in splits.items():
            save_file(_arrays(split), draft / f"{name}.safetensors")
        write_json(draft / _IDS, {name: list(split.ids) for name, split in splits.items()})
        manifest = _Manifest(
            format=FORMAT,
            source=source,
            digest=data.digest,
            classes=data.classes,
            simulated=data.simulated,
            notes=list(data.notes),
            modalities=data.widths,
            samples={name: len(split) for name, split in splits.items()},
            files={name: file_digest(draft / name) for name in _FILES},
        )
        content = asdict(manifest)
        write_json(draft / _MANIFEST, {**content, "sha256": _seal(content)})
    except (OSError, SafetensorError) as error:
        what = f"Expected room in {draft.parent} for a copy of {source.name}, but got: {error}."
        raise UserError(what, "Free space, or give another folder with --store.") from error


@contextmanager
def _new_store(folder: Path) -> Iterator[Path]:
    """A draft that takes the place of the given folder if the block ends well."""
    try:
        with new_folder(folder) as draft:
            yield draft
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.exists():  # not a parent that is a file
            what = f"{folder}: expected a new or empty folder, but it holds other files."
            raise UserError(what, "Give another one with --store.") from error
        what = f"{folder}: a converted copy cannot be kept there ({error.strerror})."
        raise UserError(what, "Give a folder that can be written with --store.") from error
