"""What MONAI's loader and random transforms give for other numbers of workers and ranks."""

from itertools import chain

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
)
from monai.utils import set_determinism
from torch.utils.data import DistributedSampler

from benchmarks.faults.training.rank_training import BATCH_SIZE, digests
from cggm_seg.data.slices import SliceDataset

_BOTH = ("image", "label")


def monai_batches(slices: SliceDataset, world: int, workers: int, epochs: int) -> list[list[str]]:
    """Digests of the items of each step, on all ranks together, every rank with seed 0.

    Args:
        slices: What is augmented.
        world: Number of ranks, which take turns in this process.
        workers: Loader processes of each.
        epochs: How many.
    """
    ranks = [_rank_batches(slices, world, number, workers, epochs) for number in range(world)]
    return [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)]


def _rank_batches(
    slices: SliceDataset, world: int, number: int, workers: int, epochs: int
) -> list[list[str]]:
    set_determinism(0)
    items = [slices[0, position] for position in range(len(slices))]
    rows = [
        {"image": item["image"], "label": item["label"][None], "position": k}
        for k, item in enumerate(items)
    ]
    dataset = Dataset(rows, _transforms())
    sampler: DistributedSampler[int] = DistributedSampler(
        dataset, world, number, seed=0, drop_last=True
    )
    loader = DataLoader(
        dataset,
        batch_size=BATCH_SIZE // world,
        sampler=sampler,
        num_workers=workers,
        drop_last=True,
    )
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found += [digests({key: torch.as_tensor(batch[key]) for key in _BOTH}) for batch in loader]
    return found


def _transforms() -> Compose:
    return Compose(
        [
            RandFlipd(_BOTH, prob=0.5),
            RandRotate90d(_BOTH, prob=0.5),
            RandScaleIntensityd("image", factors=0.1, prob=1.0),
            RandGaussianNoised("image", prob=0.1),
        ]
    )
