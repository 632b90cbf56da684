"""Training slices whose randomness depends on seed, epoch and position alone."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cggm_seg import augmentation
from cggm_seg.cache import SliceCache


class SliceItem(TypedDict):
    """One training slice.

    Attributes:
        image: Z-scores, float32, shape ``(M, size, size)``.
        label: Classes 0 to 3, int64, shape ``(size, size)``.
        case: Identifier of the case.
        position: Of the case in the data set.
    """

    image: Tensor
    label: Tensor
    case: str
    position: int


class SliceDataset(Dataset[SliceItem]):
    """Random crops of random slices, indexed by ``(epoch, position)`` of an epoch.

    Indices come from :class:`cggm.runs.batches.EpochSampler`. An item is a function of seed, epoch
    and position: workers, ranks and a resumed run get the same ones.

    Args:
        cache: Where slices are read.
        case_ids: Cases to draw from; each is drawn ``slices_per_case`` times an epoch.
        size: Height and width of a crop; smaller slices are padded with background.
        slices_per_case: Items per case and epoch.
        lesion_fraction: Probability of a slice with lesion, and of a crop that meets it; a case
            without lesion gives any slice instead.
        seed: Base of all randomness.
        augment: Whether to change crops by :func:`cggm_seg.augmentation.augment`.

    Raises:
        ValueError: If there is no case, a number is not positive or the fraction not in [0, 1].
    """

    def __init__(
        self,
        cache: SliceCache,
        case_ids: Sequence[str],
        *,
        size: int = 160,
        slices_per_case: int = 1,
        lesion_fraction: float = 0.9,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        if not case_ids or min(size, slices_per_case) < 1:
            raise ValueError(
                "Expected at least one case and positive `size` and `slices_per_case`, but got "
                f"{len(case_ids)} cases, {size} and {slices_per_case}."
            )
        if not 0 <= lesion_fraction <= 1:
            raise ValueError(f"Expected `lesion_fraction` in [0, 1], but got {lesion_fraction}.")
        self.cache = cache
        self.case_ids = tuple(case_ids)
        self.size = size
        self.slices_per_case = slices_per_case
        self.lesion_fraction = lesion_fraction
        self.seed = seed
        self.augment = augment
        if augment:
            augmentation.spatial_transforms()  # imported once here, not by every worker
        self._lesion_slices = {
            case_id: np.flatnonzero(cache.class_counts(case_id)[:, 1:].any(axis=1))
            for case_id in self.case_ids
        }

    def __len__(self) -> int:
        return len(self.case_ids) * self.slices_per_case

    def __getitem__(self, index: tuple[int, int]) -> SliceItem:
        epoch, position = index
        if not 0 <= position < len(self):
            raise IndexError(f"Expected `position` in [0, {len(self)}), but got {position}.")
        rng = np.random.default_rng([self.seed, epoch, position])
        number = position // self.slices_per_case
        case_id = self.case_of(position)
        image, label = self._draw(case_id, rng)
        if self.augment:
            image, label = augmentation.augment(image, label, rng)
        return SliceItem(
            image=torch.from_numpy(image),
            label=torch.from_numpy(label).long(),
            case=case_id,
            position=number,
        )

    def case_of(self, position: int) -> str:
        """The case that the item at a position of an epoch is drawn from."""
        return self.case_ids[position // self.slices_per_case]

    def _draw(self, case_id: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lesion_slices = self._lesion_slices[case_id]
        wanted = rng.random() < self.lesion_fraction and lesion_slices.size > 0
        z = (
            lesion_slices[rng.integers(lesion_slices.size)]
            if wanted
            else rng.integers(self.cache.depth(case_id))
        )
        image, label = self.cache.read(case_id, int(z))
        point = None
        if wanted:
            lesion = np.flatnonzero(label != 0)  # 6 times faster than on integers
            point = divmod(int(lesion[rng.integers(lesion.size)]), label.shape[1])
        return random_crop(image, label, self.size, rng, point)


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    size: int,
    rng: np.random.Generator,
    point: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A square crop at a random place; what lies outside the slice is 0.

    Args:
        image: Shape ``(M, h, w)``.
        label: Shape ``(h, w)``.
        size: Height and width of the crop.
        rng: Source of randomness.
        point: Row and column that the crop must contain.

    Returns:
        Image ``(M, size, size)`` and label ``(size, size)``.
    """
    place = [
        _window(length, size, rng, None if point is None else point[axis])
        for axis, length in enumerate(label.shape)
    ]
    source, target = tuple(p[0] for p in place), tuple(p[1] for p in place)
    crop = np.zeros((len(image), size, size), image.dtype)
    crop_label = np.zeros((size, size), label.dtype)
    crop[:, *target] = image[:, *source]
    crop_label[target] = label[source]
    return crop, crop_label


def _window(
    length: int, size: int, rng: np.random.Generator, point: int | None
) -> tuple[slice, slice]:
    low, high = min(0, length - size), max(0, length - size)
    if point is not None:
        low, high = max(low, point - size + 1), min(high, point)
    start = int(rng.integers(low, high + 1))
    first, last = max(start, 0), min(start + size, length)
    return slice(first, last), slice(first - start, last - start)
