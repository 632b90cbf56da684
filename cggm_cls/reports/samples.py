"""Predictions of a run for each test sample, kept beside it for its report."""

import numpy as np

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
    """
    path = run.path / "predictions.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return archive["prediction"], archive["target"]
