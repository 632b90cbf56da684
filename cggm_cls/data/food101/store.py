"""Features of a data set on disk, mapped into memory: 128 samples are read in milliseconds."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cggm.errors import DataError, UserError
from cggm.runs import write_atomically
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData

FORMAT = 1
"""Version of the layout of a store."""

MANIFEST, SAMPLES, PROGRESS = "manifest.json", "samples.json", "progress.json"
SPLITS = ("train", "valid", "test")

_REDO = "Extract the features anew into another folder, or delete this one first."


class FeatureKey(TypedDict, total=False):
    """What features depend on.

    Attributes:
        records: Digest of the samples.
        split: Digest of which sample is in which split, and of their order.
        text_model: Digest of the text backbone.
        image_model: Digest of the image backbone.
        transform: What is done to texts and images, JSON values.
    """

    records: str
    split: str
    text_model: str
    image_model: str
    transform: dict[str, Any]


def values_file(folder: Path, modality: str) -> Path:
    """Steps of all sequences of a modality, little-endian float16, one after another."""
    return folder / f"{modality}.values.bin"


def lengths_file(folder: Path, modality: str) -> Path:
    """Steps of each sequence of a modality, little-endian int32."""
    return folder / f"{modality}.lengths.bin"


def check_key(folder: Path, found: Mapping[str, Any], expected: FeatureKey) -> None:
    """Refuse features that were made from something else.

    Args:
        folder: Where they lie.
        found: The key they were made with.
        expected: The key that is needed, or a part of it.

    Raises:
        UserError: If the two differ; it names what does.
    """
    differing = [_difference(name, found.get(name), value) for name, value in expected.items()]
    reasons = [reason for reason in differing if reason]
    if reasons:
        what = f"Expected the features in {folder} to belong to this run, but they were made with "
        raise UserError(f"{what}{', '.join(reasons)}.", _REDO)


def _difference(name: str, found: object, expected: object) -> str | None:
    if found == expected:
        return None
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return f"other {name}" if name == "records" else f"another {name.replace('_', ' ')}"
    names = [key for key in expected if found.get(key) != expected[key]]
    return ", ".join(f"{key} {found.get(key)} instead of {expected[key]}" for key in names) or (
        "another transform"
    )


@dataclass(frozen=True)
class FeatureStore:
    """A finished store; see :func:`open_features`.

    Attributes:
        folder: Where it lies.
        manifest: What it was made from and how, JSON values.
        samples: Split to ``ids`` and ``labels``, the latter as class indices.
        sequences: Modality to its sequences, mapped into memory; split after split, and in each
            the views of a sample after one another.
    """

    folder: Path
    manifest: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, list[Any]]]
    sequences: Mapping[str, RaggedSequences]

    def task_data(self, *, seed: int) -> TaskData:
        """All splits.

        Args:
            seed: Of the choice of views in training.
        """
        splits = {split: self._dataset(split, seed) for split in SPLITS}
        skipped = self.manifest["skipped"]
        left_out = [f"{len(skipped)} bad samples were left out of the features."] if skipped else []
        return TaskData(
            **splits,
            classes=len(self.manifest["classes"]),
            digest=self._digest(),
            simulated=self.manifest["simulated"],
            notes=(*self.manifest["notes"], *left_out),
            names=tuple(self.manifest["classes"]),
        )

    def _dataset(self, split: str, seed: int) -> SequenceDataset:
        inputs = {name: self._part(name, split) for name in self.sequences}
        views = {name: self._views(name)[split] for name in self.sequences}
        target = torch.tensor(self.samples[split]["labels"])
        return SequenceDataset(inputs, target, self.samples[split]["ids"], views, seed)

    def _part(self, name: str, split: str) -> RaggedSequences:
        views = self._views(name)
        ends = list(accumulate(len(self.samples[s]["ids"]) * views[s] for s in SPLITS))
        first, last = [0, *ends][SPLITS.index(split) :][:2]
        offsets = self.sequences[name].offsets[first : last + 1]
        steps = self.sequences[name].values[int(offsets[0]) : int(offsets[-1])]
        return RaggedSequences(steps, offsets - offsets[0])

    def _views(self, name: str) -> Mapping[str, int]:
        views: Mapping[str, int] = self.manifest["modalities"][name]["views"]
        return views

    def _digest(self) -> str:
        parts = [self.manifest[name] for name in ("key", "modalities", "samples")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_features(folder: Path, expected: FeatureKey | None = None) -> FeatureStore:
    """Open a finished store; values are read when they are used.

    Args:
        folder: Where it lies.
        expected: What the features must have been made from, as far as known.

    Raises:
        DataError: If a file of the store is missing or damaged.
        UserError: If there is no finished store of this format, or it was made from other samples,
            by another model or with another transform.
    """
    manifest = _manifest(folder)
    try:
        check_key(folder, manifest["key"], expected or {})
        content = (folder / SAMPLES).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["samples"]:
            raise ValueError(f"{SAMPLES} does not belong to {MANIFEST}")
        modalities = manifest["modalities"]
        sequences = {name: _sequences(folder, name, modalities[name]) for name in modalities}
        return FeatureStore(folder, manifest, json.loads(content), sequences)
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"Expected the features as they were written, but they are damaged ({error})."
        raise DataError("features", folder, what, _REDO) from error


def _manifest(folder: Path) -> dict[str, Any]:
    unfinished = (folder / PROGRESS).is_file()
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text("utf-8")))
    except FileNotFoundError as error:
        found = "an unfinished extraction" if unfinished else "none"
        fix = "Run the extraction to its end." if unfinished else "Extract the features first."
        raise UserError(f"Expected features in {folder}, but found {found}.", fix) from error
    except (OSError, ValueError, TypeError) as error:
        what = f"Expected a manifest, but it cannot be read ({error})."
        raise DataError("features", folder / MANIFEST, what, _REDO) from error
    if manifest.get("format") != FORMAT:
        what = f"Expected features of format {FORMAT} in {folder}, but found format "
        raise UserError(f"{what}{manifest.get('format')}.", _REDO)
    return manifest


def _sequences(folder: Path, name: str, facts: Mapping[str, Any]) -> RaggedSequences:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a modality")
    steps, width = facts["shape"]
    lengths = np.fromfile(lengths_file(folder, name), "<i4").astype(np.int64)
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    return RaggedSequences(_mapped(values_file(folder, name), steps, width), offsets)


def _mapped(file: Path, steps: int, width: int) -> Tensor:
    found = file.stat().st_size
    if found != steps * width * 2:
        raise ValueError(f"{file.name} has {found} bytes instead of {steps * width * 2}")
    # Copy-on-write, since torch warns of memory that it must not write to.
    return torch.from_numpy(np.memmap(file, "<f2", "c", shape=(steps, width)))


Features = NDArray[np.float16]


class FeatureWriter:
    """Appends shards to the files of a store, by one process at a time.

    A shard counts once ``progress.json`` says so, which is replaced after its bytes are on disk.
    Bytes after that, of a shard that was cut off, are dropped by the next writer.

    Args:
        folder: Made if missing; else empty or an unfinished store of the same key.
        key: What the features are made from, but for the samples, which may be mended as long as
            they are not finished.
        widths: Modality to the features of a step.

    Attributes:
        done: Samples that are finished, those left out included.
        skipped: Identifier to fault, of the samples that were left out.
        records: Digest of the finished samples.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
        DataError: If the unfinished store is damaged.
    """

    def __init__(self, folder: Path, key: FeatureKey, widths: Mapping[str, int]) -> None:
        self._folder = folder
        self._key = key
        self._widths = dict(widths)
        files = [path(folder, name) for name in widths for path in (values_file, lengths_file)]
        self._sizes = {file.name: 0 for file in files}
        self.done = 0
        self.skipped: dict[str, str] = {}
        self.records = hashlib.sha256().hexdigest()
        try:
            self._claim()
        except OSError as error:
            raise self._unwritable(error) from error

    def commit(
        self,
        shard: Mapping[str, Sequence[Features]],
        *,
        samples: int,
        skipped: Mapping[str, str],
        records: str,
    ) -> None:
        """Append a shard.

        Args:
            shard: Modality to sequences of shape ``(T_i, width)``, every view one.
            samples: Samples that the shard covers, those left out included.
            skipped: Identifier to fault, of the samples that are left out.
            records: Digest of all samples finished by now.

        Raises:
            UserError: If there is no room; what was committed before stays.
        """
        try:
            for name, sequences in shard.items():
                lengths = np.array([len(sequence) for sequence in sequences], "<i4")
                self._append(lengths_file(self._folder, name), [lengths])
                self._append(values_file(self._folder, name), sequences)
            self.done += samples
            self.skipped.update(skipped)
            self.records = records
            self._save()
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(
        self,
        records: str,
        samples: Mapping[str, Mapping[str, Sequence[Any]]],
        views: Mapping[str, Sequence[int]],
        facts: Mapping[str, Any],
    ) -> None:
        """Make the store valid.

        Args:
            records: Digest of all samples, for the key of the store.
            samples: Split to ``ids`` and ``labels`` of the samples that were not left out.
            views: Modality to views of a sample, per split.
            facts: What else the manifest says, JSON values.

        Raises:
            UserError: If there is no room.
        """
        listed = json.dumps(samples).encode()
        manifest = {
            "format": FORMAT,
            **facts,
            "key": {"records": records, **self._key},
            "modalities": {name: self._describe(name, views[name]) for name in self._widths},
            "samples": hashlib.sha256(listed).hexdigest(),
            "skipped": self.skipped,
        }
        try:
            write_atomically(self._folder / SAMPLES, listed)
            write_atomically(self._folder / MANIFEST, _json(manifest))
            (self._folder / PROGRESS).unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _describe(self, name: str, views: Sequence[int]) -> dict[str, Any]:
        width = self._widths[name]
        steps = self._sizes[values_file(self._folder, name).name] // (2 * width)
        views_of = dict(zip(SPLITS, views, strict=True))
        return {"dtype": "float16", "shape": [steps, width], "views": views_of}

    def _claim(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / PROGRESS).exists():
            self._resume()
        elif any(self._folder.iterdir()):
            raise UserError(
                f"Expected {self._folder} to be empty or to hold features, but found other files.",
                "Choose another folder for the features.",
            )
        for name, size in self._sizes.items():
            with (self._folder / name).open("ab") as stream:
                stream.truncate(size)
        self._save()

    def _resume(self) -> None:
        file = self._folder / PROGRESS
        try:
            found = json.loads(file.read_text("utf-8"))
            check_key(self._folder, found["key"], self._key)
            self.done, self.skipped = int(found["done"]), dict(found["skipped"])
            self.records = found["records"]
            self._sizes = {name: int(found["sizes"][name]) for name in self._sizes}
            for leftover in self._folder.glob(".tmp-*"):
                leftover.unlink()
            if all((self._folder / name).stat().st_size >= n for name, n in self._sizes.items()):
                return
            found = "files that are too short"
        except (OSError, KeyError, TypeError, ValueError) as error:
            found = str(error)
        what = f"Expected an unfinished extraction, but it is damaged ({found})."
        raise DataError("features", file, what, "Delete the folder and extract anew.")

    def _append(self, file: Path, arrays: Sequence[NDArray[Any]]) -> None:
        with file.open("ab") as stream:
            for array in arrays:
                stream.write(np.ascontiguousarray(array).data)
            stream.flush()
            os.fsync(stream.fileno())
            self._sizes[file.name] = stream.tell()

    def _save(self) -> None:
        progress = {
            "key": self._key,
            "done": self.done,
            "sizes": self._sizes,
            "skipped": self.skipped,
            "records": self.records,
        }
        write_atomically(self._folder / PROGRESS, _json(progress))

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Expected to write features to {self._folder}, but got: {error.strerror}.",
            "Free space or choose another folder; what is done is kept.",
        )


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
