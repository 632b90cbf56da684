"""Random changes of training slices: albumentations moves pixels, the intensities are ours.

The intensity operations of albumentations clip z-scores to [0, 1] and are not used.
"""

import os
import random
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import albumentations

_NOISE_PROBABILITY = 0.1


def augment(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flips, turns and warps a slice, rescales its intensities and sometimes adds noise.

    The result depends on the arguments alone, in every process.

    Args:
        image: Z-scores, background exactly 0 before and after, float32, shape ``(M, H, H)``.
        label: Classes, shape ``(H, H)``.
        rng: Source of all randomness; it is advanced.

    Returns:
        New image and label of the same shapes and types.
    """
    rows = {"image": np.ascontiguousarray(image.transpose(1, 2, 0)), "mask": label}
    # One stream for all: seeding them apart from one seed makes them act in the same slices.
    stream = random.Random(int(rng.integers(1 << 32)))
    for transform in spatial_transforms():
        transform.set_random_state(rng, stream)
        rows = transform(**rows)
    moved = np.ascontiguousarray(rows["image"].transpose(2, 0, 1))
    return _change_intensities(moved, rng), np.ascontiguousarray(rows["mask"])


@cache
def spatial_transforms() -> tuple["albumentations.DualTransform", ...]:
    """The moves of pixels; the first call imports albumentations, which takes seconds."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network when imported
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # its threads do not survive the fork of a DataLoader worker
    return (
        albumentations.HorizontalFlip(p=0.5),
        albumentations.RandomRotate90(p=0.5),
        albumentations.Affine(
            scale=(0.9, 1.1),
            rotate=(-15, 15),
            translate_percent=(-0.05, 0.05),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            p=0.3,
        ),
    )


def _change_intensities(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape = (len(image), 1, 1)
    changed = image * rng.uniform(0.9, 1.1, shape).astype(np.float32)
    changed += rng.uniform(-0.1, 0.1, shape).astype(np.float32)
    if rng.random() < _NOISE_PROBABILITY:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        changed += np.float32(rng.uniform(0, 0.2)) * noise
    changed[image == 0] = 0
    return changed
