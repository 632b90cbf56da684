"""Simulated data in the layout of MMIN's IEMOCAP folder: nothing in them was measured.

Text carries most of the class and is learnt fast, audio carries half of it and is learnt slowly,
vision carries nothing. The utterances are invented, and so are the speakers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cggm_cls.data.iemocap.features import FILES, STATISTICS, STEPS, WIDTHS
from cggm_cls.data.iemocap.folds import CLASSES
from cggm_cls.data.simulated import Array, SimulatedModality, simulate_sequences, simulated_folder

MODALITIES = {
    "text": SimulatedModality(WIDTHS["text"], (6, 22), information=0.8, strength=3.0),
    "audio": SimulatedModality(WIDTHS["audio"], (30, 60), information=0.5, strength=0.5),
    "vision": SimulatedModality(WIDTHS["vision"], (10, 30), information=0.0, strength=1.0),
}
"""What is known about each modality."""

SPEAKERS = tuple(f"Ses{session:02}{sex}" for session in range(1, 6) for sex in "FM")
"""Two of a session follow one another."""

_VERSION = 1  # to be raised whenever the same seed gives other values


def simulate_iemocap(folder: Path, *, per_speaker: int = 40, seed: int = 0) -> None:
    """Write all ten folds, or nothing; a folder of the same settings is left as it is.

    In fold 2 k - 1 the first speaker of session k is for validation and the second for the test,
    in fold 2 k the other way round; the other eight are for training. A file ``simulated.json``
    marks the folder.

    Args:
        folder: Absent, empty, or one that this function wrote.
        per_speaker: Utterances of each of the ten speakers; about 0.2 MB each.
        seed: The same seed gives the same values, not negative.

    Raises:
        UserError: If the folder holds anything else.
    """
    settings = {"generator": _VERSION, "seed": seed, "per_speaker": per_speaker}
    with simulated_folder(folder, settings) as draft:
        if draft is not None:
            _write(draft, per_speaker, seed)


def _write(folder: Path, per_speaker: int, seed: int) -> None:
    ids = [_utterance(speaker, n) for speaker in SPEAKERS for n in range(per_speaker)]
    target = np.random.default_rng([seed, 2]).integers(CLASSES, size=len(ids))
    sequences = simulate_sequences(MODALITIES, target, seed=seed, split=0)
    sequences["audio"] = _raw(sequences["audio"], seed)
    for modality, file in FILES.items():
        _write_features(folder / file, ids, _padded(sequences[modality], modality))
    for fold in range(1, len(SPEAKERS) + 1):
        parts = _parts(fold, per_speaker)
        _write_fold(folder / "target" / str(fold), parts, ids, target)
        _write_statistics(folder / STATISTICS, fold, [sequences["audio"][i] for i in parts[0]])


def _utterance(speaker: str, number: int) -> str:
    return f"{speaker}_impro01_{speaker[-1]}{number:03}"


def _raw(audio: Sequence[Array], seed: int) -> list[Array]:
    """Features of unlike means and scales, as before normalization."""
    rng = np.random.default_rng([seed, 3])
    scale = rng.lognormal(0, 2, WIDTHS["audio"])
    mean = scale * rng.normal(0, 3, WIDTHS["audio"])
    return [(steps * scale + mean).astype(np.float32) for steps in audio]


def _padded(sequences: Sequence[Array], modality: str) -> list[Array]:
    steps = STEPS.get(modality)
    if steps is None:
        return [*sequences]
    return [np.pad(sequence, ((0, steps - len(sequence)), (0, 0))) for sequence in sequences]


def _parts(fold: int, per_speaker: int) -> list[NDArray[np.int64]]:
    """Positions of the utterances for training, validation and test."""
    valid = fold - 1
    test = valid ^ 1
    speaker = np.arange(len(SPEAKERS)).repeat(per_speaker)
    chosen = (~np.isin(speaker, (valid, test)), speaker == valid, speaker == test)
    return [np.flatnonzero(mask) for mask in chosen]


def _write_features(file: Path, ids: Sequence[str], arrays: Sequence[Array]) -> None:
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as root:
        for name, array in zip(ids, arrays, strict=True):
            root[name] = array


def _write_statistics(file: Path, fold: int, train: Sequence[Array]) -> None:
    import h5py

    steps = np.concatenate([*train])
    with h5py.File(file, "a") as root:
        root[f"{fold}/mean"] = steps.mean(0, dtype=np.float64)
        root[f"{fold}/std"] = steps.std(0, dtype=np.float64)


def _write_fold(
    folder: Path,
    parts: Sequence[NDArray[np.int64]],
    ids: Sequence[str],
    target: NDArray[np.int64],
) -> None:
    folder.mkdir(parents=True)
    for name, rows in zip(("trn", "val", "tst"), parts, strict=True):
        np.save(folder / f"{name}_label.npy", np.eye(CLASSES)[target[rows]])
        names = np.array([[ids[row].encode()] for row in rows])
        np.save(folder / f"{name}_int2name.npy", names)
