"""The files of a store: one safetensors file per split, identifiers, and a manifest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cggm.errors import DataError
from cggm.runs.folder import replacing, write_atomically
from cggm_cls.sequences import RaggedSequences, SequenceDataset, TaskData

FORMAT = 1
"""Raised whenever the files change, or what is made of a pickle."""

AGAIN = "Delete the folder to convert the file again, or give another one with --store."

_MANIFEST = "manifest.json"
_IDS = "ids.json"
_SPLITS = ("train", "valid", "test")
_FILES = (_IDS, *(f"{split}.safetensors" for split in _SPLITS))


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
        """Describe a file.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            found = file.stat()
            return cls(file.name, found.st_size, found.st_mtime_ns, _digest(file))
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


def is_store(folder: Path) -> bool:
    """Whether a folder holds a store, judged by its manifest being there."""
    return (folder / _MANIFEST).is_file()


def source_of(folder: Path) -> Source:
    """What a store was made from.

    Raises:
        DataError: If its manifest is damaged or of another version.
    """
    return _read_manifest(folder).source


def write_files(folder: Path, data: TaskData, source: Source) -> None:
    """Write all files of a store.

    Args:
        folder: An empty folder.
        data: The splits, with one view of each sample.
        source: What they were read from.

    Raises:
        OSError: If no space is left.
        SafetensorError: Likewise.
        ValueError: If samples have several views.
    """
    splits: dict[str, SequenceDataset] = {name: getattr(data, name) for name in _SPLITS}
    for name, split in splits.items():
        with replacing(folder / f"{name}.safetensors") as temporary:
            save_file(_arrays(split), temporary)
    ids = {name: list(split.ids) for name, split in splits.items()}
    write_atomically(folder / _IDS, json.dumps(ids).encode())
    manifest = _Manifest(
        format=FORMAT,
        source=source,
        digest=data.digest,
        classes=data.classes,
        simulated=data.simulated,
        notes=list(data.notes),
        modalities=data.widths,
        samples={name: len(split) for name, split in splits.items()},
        files={name: _digest(folder / name) for name in _FILES},
    )
    content = asdict(manifest)
    sealed = json.dumps({**content, "sha256": _seal(content)}, indent=2)
    write_atomically(folder / _MANIFEST, f"{sealed}\n".encode())


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
        ids = json.loads((folder / _IDS).read_text("utf-8"))
        splits = {name: _read_split(folder, name, manifest, ids[name]) for name in _SPLITS}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"its files do not fit together ({error})") from error
    return TaskData(
        **splits,
        classes=manifest.classes,
        digest=manifest.digest,
        simulated=manifest.simulated,
        notes=tuple(manifest.notes),
        names=(),
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
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
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
        found = _digest(file)
    except OSError as error:
        raise _damaged(file, f"it cannot be read ({error.strerror})") from error
    if found != digest:
        raise _damaged(file, "its content was changed or cut short")


def _damaged(path: Path, found: str) -> DataError:
    what = f"Expected a converted copy as it was written, but {found}."
    return DataError(path.name, path, what, AGAIN)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
