"""HTAD: activities at home by the sound and the acceleration of a wrist, two real sensors.

1386 samples of seven activities, features of a few seconds each: 36 MFCC of the audio and 16
statistics of the accelerometer.

Source: E. Garcia-Ceja et al., HTAD: A Home-Tasks Activities Dataset with Wrist-accelerometer and
Audio Features, MMM 2021. Terms: free for research and education with a reference to that article;
competitions and commercial use need prior written permission of its authors.
"""

import csv
import hashlib
import io
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cggm.errors import DataError, UserError
from cggm_cls.data.mfeat import dataset_of, occurrences, standardized
from cggm_cls.data.sequences import TaskData, content_digest

STEPS = {"audio": 3, "accelerometer": 1}
"""How many equal chunks, in file order, the features of a modality are cut into."""

CLASSES = (
    *("brush_teeth", "eat_chips", "mop_floor", "sweep", "type_on_keyboard"),
    *("wash_hands", "watch_tv"),
)

_PREFIX = {"audio": "v1_", "accelerometer": "v2_"}
_SHA256 = "eedeef7290720759a6e4851c18eb6bc93cfc839f563098d5f1588a4e3dc47bce"
_WHEEL_FILE = "multiviewstacking/data/htad.csv"
_FIX = (
    "Run `pip install --no-deps multiviewstacking==0.7.5`, or give --data with its htad.csv, whose "
    "terms allow research and education."
)
_NOTES = (
    "HTAD by E. Garcia-Ceja et al. (MMM 2021), in the file of multiviewstacking 0.7.5; free for "
    "research and education with a reference to the article.",
    "The file does not say who performed an activity: people are in all splits.",
)


def load_htad(folder: Path | None, *, seed: int) -> TaskData:
    """Split the samples of each class into 5 : 2 : 3 for training, validation and test.

    Samples that occur several times are all in the training split. Features are standardized by
    the mean and deviation of the training split and cut into :data:`STEPS`.

    Args:
        folder: Where ``htad.csv`` lies; that of an installed multiviewstacking where ``None``,
            which is not imported.
        seed: Of the split, not negative.

    Raises:
        UserError: If no data is there.
        DataError: If the file is missing or is not that of multiviewstacking 0.7.5.
    """
    head, *rows = _read(_wheel_file() if folder is None else folder / "htad.csv")
    target = np.array([CLASSES.index(row[0]) for row in rows], dtype=np.int64)
    columns = {
        name: [k for k, column in enumerate(head) if column.startswith(prefix)]
        for name, prefix in _PREFIX.items()
    }
    features = {
        name: np.array([[float(row[k]) for k in own] for row in rows])
        for name, own in columns.items()
    }
    parts = _split(occurrences(features), target, seed)
    ready = {name: standardized(values, parts["train"]) for name, values in features.items()}
    splits = {part: dataset_of(ready, target, r, STEPS, "activity") for part, r in parts.items()}
    return TaskData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=len(CLASSES),
        digest=content_digest(splits),
        simulated=False,
        notes=_NOTES,
        names=tuple(name.replace("_", " ") for name in CLASSES),
    )


def _wheel_file() -> Path:
    try:
        return Path(str(distribution("multiviewstacking").locate_file(_WHEEL_FILE)))
    except PackageNotFoundError as error:
        what = "Expected the data set HTAD, but multiviewstacking is not installed."
        raise UserError(what, _FIX) from error


def _read(file: Path) -> list[list[str]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        what = f"Expected htad.csv, but the file cannot be read ({error.strerror})."
        raise DataError("htad", file, what, _FIX) from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        what = f"Expected sha256 {_SHA256[:12]}... (0.7.5), but found {found[:12]}..."
        raise DataError("htad", file, what, _FIX)
    return [*csv.reader(io.StringIO(content.decode()))]


def _split(
    repeated: NDArray[np.int64], target: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Rows of each split, in file order."""
    rng = np.random.default_rng([seed, 0])
    found: dict[str, list[NDArray[np.int64]]] = {"train": [], "valid": [], "test": []}
    for label in range(len(CLASSES)):
        rows = rng.permutation(np.flatnonzero(target == label))
        # Repeated samples first, and thus all in the training split.
        rows = rows[np.argsort(-repeated[rows], kind="stable")]
        valid, test = len(rows) // 5, 3 * len(rows) // 10
        ends = [len(rows) - valid - test, len(rows) - test]
        for own, part in zip(found.values(), np.split(rows, ends), strict=True):
            own.append(part)
    return {part: np.sort(np.concatenate(rows)) for part, rows in found.items()}
