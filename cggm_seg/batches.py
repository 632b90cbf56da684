"""Batches of training slices, on their way from the cache to the network."""

import torch
from torch import Tensor

from cggm.distributed import rank, world_size
from cggm.errors import UserError
from cggm.runs.batches import EndlessBatches, EpochSampler
from cggm.runs.loading import CaseLoader
from cggm.runs.ranks import share_of_batch
from cggm_seg.config import BratsConfig
from cggm_seg.dataset import SliceDataset, SliceItem


def slice_batches(config: BratsConfig, dataset: SliceDataset) -> EndlessBatches:
    """Which slices each batch of this rank holds, epoch after epoch.

    Args:
        config: The configuration.
        dataset: The training slices.

    Raises:
        UserError: If there are too few slices for BatchNorm.
    """
    world = world_size()
    if len(dataset) < 2 * world:
        raise UserError(
            f"Expected at least {2 * world} training slices in an epoch, for BatchNorm, but got "
            f"{len(dataset)}.",
            "Add cases, or raise --slices.per_case.",
        )
    sampler = EpochSampler(len(dataset), seed=config.seed, rank=rank(), world=world)
    return EndlessBatches(sampler, share_of_batch(config.batch_size, least=2))


def slice_loader(
    config: BratsConfig, dataset: SliceDataset, batches: EndlessBatches
) -> CaseLoader[SliceItem]:
    """A loader that names the case which a worker that died was reading.

    Args:
        config: The configuration.
        dataset: The training slices.
        batches: Which of them, in which order.
    """
    return CaseLoader(
        dataset,
        batches,
        name=dataset.case_of,
        workers=config.processes,
        pin_memory=torch.cuda.is_available(),
    )


def prepare_batch(
    batch: SliceItem, device: torch.device, non_blocking: bool, **_: object
) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch on a device, as MONAI's trainer asks for them."""
    image, label = batch["image"], batch["label"]
    return image.to(device, non_blocking=non_blocking), label.to(device, non_blocking=non_blocking)
