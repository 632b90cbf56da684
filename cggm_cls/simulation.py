"""Simulated sequences whose information, learning speed and noise per modality are known."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        seed: Of the directions, shared by all splits.
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
        own = rng.random(len(target)) < modality.information
        evidence = np.where(own, target, rng.permutation(target))
        directions = np.random.default_rng([seed, 0, number])
        signal = modality.strength * _signals(evidence, modality.width, directions)
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
        directions = rng.standard_normal((int(evidence.max()) + 1, width))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        chosen: NDArray[np.float64] = directions[evidence.astype(np.int64)]
        return chosen
    direction = rng.standard_normal(width)
    return evidence.astype(np.float64)[:, None] * (direction / np.linalg.norm(direction))
