"""Feature stores: sequences of features in flat files that are appended to, then mapped.

A folder holds for each modality the steps of all its sequences and their lengths, split after
split, with a manifest that says what they were made from. While an extraction runs it has
``progress.json`` in the manifest's place, so that the next one goes on where it stopped. Mapped
into memory, 128 samples are read in milliseconds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from cggm.errors import DataError, UserError
from cggm.runs import parse_json
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData

FORMAT = 1
"""Version of the layout of a store."""

MANIFEST, SAMPLES, PROGRESS = "manifest.json", "samples.json", "progress.json"
SPLITS = ("train", "valid", "test")

_REDO = "Extract the features anew into another folder, or delete this one first."


class FeatureKey(TypedDict, total=False):
    """Key of a store: all that its features depend on, so that others are never taken for them.

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
    """File with the steps of all sequences of a modality, little-endian float16.

    Args:
        folder: Of the store.
        modality: Such as ``text``.
    """
    return folder / f"{modality}.values.bin"


def lengths_file(folder: Path, modality: str) -> Path:
    """File with the number of steps of each sequence of a modality, little-endian int32.

    Args:
        folder: Of the store.
        modality: Such as ``text``.
    """
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
        """All splits; values stay on the disk until a batch needs them.

        Args:
            seed: Of the choice of views in training.
        """
        splits = {split: self._dataset(split, seed) for split in SPLITS}
        skipped = self.manifest["skipped"]
        left_out = [f"{len(skipped)} bad samples were left out of the features."] if skipped else []
        return TaskData(
            train=splits["train"],
            valid=splits["valid"],
            test=splits["test"],
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
        # Splits follow one another in the file; a split may have several views of each sample.
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
        return FeatureStore(folder, manifest, parse_json(content), sequences)
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"Expected the features as they were written, but they are damaged ({error})."
        raise DataError("features", folder, what, _REDO) from error


def _manifest(folder: Path) -> dict[str, Any]:
    unfinished = (folder / PROGRESS).is_file()
    try:
        manifest = dict(parse_json((folder / MANIFEST).read_bytes()))
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
