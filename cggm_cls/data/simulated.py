"""Simulated sequences, with known information and learning speed of each modality.

Folders of simulated content carry a file that says so; reports repeat it on every page.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cggm.errors import UserError
from cggm.runs import new_folder, parse_json, write_json

_MARKER = "simulated.json"


def mark_simulated(folder: Path, settings: Mapping[str, object]) -> None:
    """Declare that nothing in a folder was measured or trained.

    Args:
        folder: An existing folder; gets the file ``simulated.json``.
        settings: What its content was generated from, JSON values.
    """
    write_json(folder / _MARKER, dict(settings))


def is_simulated(folder: Path) -> bool:
    """Whether a folder declares itself simulated, see :func:`mark_simulated`.

    Args:
        folder: Any folder, or none.
    """
    return (folder / _MARKER).is_file()


@contextmanager
def simulated_folder(folder: Path, settings: Mapping[str, object]) -> Iterator[Path | None]:
    """Write a folder of simulated content whole or not at all.

    Args:
        folder: Absent, empty, or already simulated from the same settings.
        settings: What the content is generated from, JSON values.

    Yields:
        Where to write; ``None`` if the folder is already there.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    if _has_settings(folder, settings):
        yield None
        return
    try:
        with new_folder(folder) as draft:
            yield draft
            mark_simulated(draft, settings)
    except OSError as error:
        if _has_settings(folder, settings):  # another process was faster
            return
        if isinstance(error, FileExistsError) and folder.exists():  # not a parent that is a file
            raise UserError(
                f"Expected {folder} to be empty or simulated from the same settings, "
                "but found other files.",
                "Choose another folder, or delete this one.",
            ) from error
        what = f"Expected to write simulated data to {folder}, but got: {error.strerror}."
        raise UserError(what, "Free space or choose another folder.") from error


def _has_settings(folder: Path, settings: Mapping[str, object]) -> bool:
    try:
        return bool(parse_json((folder / _MARKER).read_bytes()) == settings)
    except (OSError, ValueError):
        return False


Array = NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedModality:
    """What is known about a simulated modality.

    Each step of a sample is Gaussian noise of unit variance plus ``strength`` times a direction
    that depends on the evidence: the direction of its class, or a common one times its value. The
    evidence is the sample's own target with probability ``information`` and that of another,
    randomly drawn sample otherwise. ``information`` thus bounds what can be learnt, and
    ``strength``, the signal to noise of a step, sets how fast it is learnt.

    Args:
        width: Features of a step.
        steps: Least and greatest length.
        information: Probability that a sample shows its own target, from 0 (useless) to 1.
        strength: Signal to noise of a step.
    """

    width: int
    steps: tuple[int, int]
    information: float
    strength: float


def simulate_sequences(
    modalities: Mapping[str, SimulatedModality],
    target: NDArray[np.generic],
    *,
    seed: int,
    split: int,
    aligned: bool = False,
) -> dict[str, list[Array]]:
    """Sequences of every modality for given targets.

    Args:
        modalities: Name to what is known about it.
        target: Shape ``(N,)``: integers are classes, floats are values.
        seed: Of the vectors that classes or values show as, shared by all splits.
        split: Of everything else; give each split its own.
        aligned: Whether all modalities of a sample are equally long, as the first one.

    Returns:
        For each modality N arrays of shape ``(T_i, width)``.
    """
    rng = np.random.default_rng([seed, 1, split])
    sequences: dict[str, list[Array]] = {}
    lengths = None
    for number, (name, modality) in enumerate(modalities.items()):
        if lengths is None or not aligned:
            lengths = rng.integers(*modality.steps, size=len(target), endpoint=True)
        # Where the evidence is another sample's, the modality contradicts the target.
        own = rng.random(len(target)) < modality.information
        evidence = np.where(own, target, rng.permutation(target))
        vectors = np.random.default_rng([seed, 0, number])
        signal = modality.strength * _signals(evidence, modality.width, vectors)
        sequences[name] = [
            (rng.standard_normal((steps, modality.width)) + shift).astype(np.float32)
            for steps, shift in zip(lengths, signal, strict=True)
        ]
    return sequences


def _signals(
    evidence: NDArray[np.generic], width: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """One vector per sample, of length 1 for a class or for a value of one."""
    if np.issubdtype(evidence.dtype, np.integer):
        vectors = rng.standard_normal((int(evidence.max()) + 1, width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        chosen: NDArray[np.float64] = vectors[evidence.astype(np.int64)]
        return chosen
    vector = rng.standard_normal(width)
    return evidence.astype(np.float64)[:, None] * (vector / np.linalg.norm(vector))
