"""What pictures of a case have in common: which slice, which part of it, grays and colors."""

from collections.abc import Sequence

import numpy as np

COLORS = {"ED": "#56b4e9", "ET": "#e69f00", "NCR": "#cc3377"}
"""Colors of edema, enhancing tumor and necrotic core, apart for every kind of color vision."""

TITLES = {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1", "t2": "T2"}
BACKGROUND, TEXT, FAINT = "#101216", "#f2f2f2", "#9aa0a6"

_SHOWN = ("flair", "t1ce")
_MARGIN = 6  # voxels around the brain


def shown_modalities(modalities: Sequence[str]) -> list[str]:
    """FLAIR and T1ce, which show edema and enhancing tumor; without both, the first one."""
    return [name for name in _SHOWN if name in modalities] or [modalities[0]]


def best_slice(images: np.ndarray, labels: np.ndarray) -> int:
    """The slice with the largest lesion, or with the largest brain where there is no lesion.

    Args:
        images: Shape ``(M, H, W, Z)``, background 0.
        labels: Classes, shape ``(H, W, Z)``.
    """
    areas = np.count_nonzero(labels, (0, 1))
    if not areas.any():
        areas = np.count_nonzero(images[0], (0, 1))
    return int(areas.argmax())


def brain_window(slices: np.ndarray) -> tuple[slice, slice]:
    """Box of the brain and a margin in a slice of all modalities, ``(M, H, W)``."""
    brain = (slices != 0).any(0)
    window = []
    for axis in (0, 1):
        hit = np.flatnonzero(brain.any(1 - axis))
        low, high = (hit[0], hit[-1] + 1) if hit.size else (0, brain.shape[axis])
        window.append(slice(max(low - _MARGIN, 0), high + _MARGIN))
    return window[0], window[1]


def gray_levels(image: np.ndarray) -> np.ndarray:
    """Intensities of the brain stretched to 0-1, the brightest half percent cut off."""
    brain = image[image != 0]
    low, high = np.percentile(brain, [0.5, 99.5]) if brain.size else (0.0, 1.0)
    stretched = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return np.where(image != 0, 0.06 + 0.94 * stretched, 0)
