"""Padded arrays of CMU-MOSI files: which steps are real, and the real ones as float32.

Arrays of CMU-MOSEI take gigabytes, often as float64: they are read a few samples at a time, and
the only large array that is made is the result.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from cggm_cls.sequences import RaggedSequences

Mask = NDArray[np.bool_]

_BLOCK = 2**22  # values at a time, 16 MB as float32


def informative_steps(values: NDArray[np.number]) -> Mask:
    """Steps with a finite value other than zero, which padding never has.

    Args:
        values: Shape ``(N, T, D)``, N at least 1.

    Returns:
        Shape ``(N, T)``.
    """
    return np.concatenate([block.any(axis=2) for block, _ in _blocks(values)])


def keep_steps(values: NDArray[np.number], mask: Mask) -> tuple[RaggedSequences, int]:
    """Real steps as float32, with infinite values and NaN set to zero.

    Args:
        values: Shape ``(N, T, D)``.
        mask: True where a step is real, shape ``(N, T)``.

    Returns:
        The sequences, and how many values of the array, padding included, were not finite.
    """
    ends = mask.sum(axis=1).cumsum()
    steps = np.empty((int(ends[-1]), values.shape[2]), np.float32)
    first, written, replaced = 0, 0, 0
    for block, bad in _blocks(values):
        chosen = block[mask[first : first + len(block)]]
        steps[written : written + len(chosen)] = chosen
        first, written, replaced = first + len(block), written + len(chosen), replaced + bad
    offsets = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64))
    return RaggedSequences(torch.from_numpy(steps), offsets), replaced


def _blocks(values: NDArray[np.number]) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Some samples at a time as finite float32, and how many values had to be set to zero."""
    samples = max(1, _BLOCK // max(1, values[0].size))
    for start in range(0, len(values), samples):
        with np.errstate(over="ignore"):  # too large for float32: infinite, hence set to zero
            block = values[start : start + samples].astype(np.float32)
        bad = ~np.isfinite(block)
        block[bad] = 0
        yield block, int(bad.sum())
