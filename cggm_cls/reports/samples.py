"""Predictions of a run for each test sample, kept beside it for its report."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from cggm.errors import UserError
from cggm.runs import RunFolder, replacing


def write_predictions(run: RunFolder, prediction: "np.ndarray", target: "np.ndarray") -> None:
    """Keep what a run predicted for the test split.

    Args:
        run: The run; gets ``predictions.npz``.
        prediction: Logits of shape ``(N, C)``, or values of shape ``(N,)``.
        target: Classes or values, shape ``(N,)``.
    """
    with replacing(run.path / "predictions.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, prediction=np.asarray(prediction, np.float32), target=target)


def read_predictions(run: RunFolder) -> tuple["np.ndarray", "np.ndarray"] | None:
    """Predictions and targets that :func:`write_predictions` kept, ``None`` where there are none.

    Args:
        run: The run.

    Raises:
        UserError: If they are damaged.
    """
    path = run.path / "predictions.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            prediction, target = archive["prediction"], archive["target"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise _unreadable(path, str(error)) from error
    if not (isinstance(target, np.ndarray) and isinstance(prediction, np.ndarray)):
        raise _unreadable(path, "they are no arrays")
    if target.ndim != 1 or prediction.shape[:1] != target.shape or prediction.ndim > 2:
        raise _unreadable(path, f"shapes are {prediction.shape} and {target.shape}")
    return prediction, target


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: expected predictions and targets of the test samples, but {why}.",
        "Delete the file; the report goes without.",
    )
