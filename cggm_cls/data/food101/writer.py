"""Writer of a feature store, which an interrupted extraction continues where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError, UserError
from cggm.runs import (
    LOCK,
    hold,
    let_go,
    parse_json,
    sweep_drafts,
    write_atomically,
    write_json,
)
from cggm_cls.data.food101.store import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    SAMPLES,
    SPLITS,
    FeatureKey,
    check_key,
    lengths_file,
    values_file,
)

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
        skipped: Identifier to what is wrong, of the samples that were left out.
        records: Digest of the finished samples.

    Raises:
        UserError: If the folder holds anything else, another process writes there, or it cannot be
            written.
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
            skipped: Identifier to what is wrong, of the samples that are left out.
            records: Digest of all samples finished by now.

        Raises:
            UserError: If there is no room; what was committed before stays.
        """
        try:
            for name, sequences in shard.items():
                lengths = np.array([len(sequence) for sequence in sequences], "<i4")
                self._append(lengths_file(self._folder, name), [lengths])
                self._append(values_file(self._folder, name), sequences)
            # Only now, with all bytes on the disk, does the shard count.
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
            write_json(self._folder / MANIFEST, manifest)
            (self._folder / PROGRESS).unlink()
            self._let_go()
        except OSError as error:
            raise self._unwritable(error) from error

    def _describe(self, name: str, views: Sequence[int]) -> dict[str, Any]:
        width = self._widths[name]
        steps = self._sizes[values_file(self._folder, name).name] // (2 * width)
        views_of = dict(zip(SPLITS, views, strict=True))
        return {"dtype": "float16", "shape": [steps, width], "views": views_of}

    def _claim(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._let_go = finalize(self, let_go, self._folder, hold(self._folder, "an extraction"))
        if (self._folder / PROGRESS).exists():
            self._resume()
        elif any(path.name != LOCK for path in self._folder.iterdir()):
            raise UserError(
                f"Expected {self._folder} to be empty or to hold features, but found other files.",
                "Choose another folder for the features.",
            )
        # Bytes behind the recorded sizes are of a shard that was cut off.
        for name, size in self._sizes.items():
            with (self._folder / name).open("ab") as stream:
                stream.truncate(size)
        self._save()

    def _resume(self) -> None:
        file = self._folder / PROGRESS
        try:
            found = parse_json(file.read_bytes())
            check_key(self._folder, found["key"], self._key)
            self.done, self.skipped = int(found["done"]), dict(found["skipped"])
            self.records = found["records"]
            self._sizes = {name: int(found["sizes"][name]) for name in self._sizes}
            sweep_drafts(self._folder)
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
        write_json(self._folder / PROGRESS, progress)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Expected to write features to {self._folder}, but got: {error.strerror}.",
            "Free space or choose another folder; what is done is kept.",
        )
