"""Batches of training sequences, on their way from the data set to the network."""

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from cggm.distributed import rank, world_size
from cggm.errors import UserError
from cggm.runs.batches import EndlessBatches, EpochSampler
from cggm.runs.ranks import share_of_batch
from cggm_cls.config import SequenceConfig
from cggm_cls.sequences import Batch, TaskData


def sequence_batches(config: SequenceConfig, data: TaskData) -> EndlessBatches:
    """Which samples each batch of this rank holds, epoch after epoch.

    Args:
        config: The configuration.
        data: The splits.

    Raises:
        UserError: If there are fewer training samples than ranks.
    """
    count, world = len(data.train), world_size()
    if count < world:
        raise UserError(
            f"Expected at least {world} training samples, but got {count or 'none'}.",
            "Give data that has some.",
        )
    sampler = EpochSampler(count, seed=config.seed, rank=rank(), world=world)
    return EndlessBatches(sampler, share_of_batch(config.batch_size))


def sequence_loader(
    config: SequenceConfig, data: TaskData, batches: EndlessBatches
) -> DataLoader[Batch]:
    """A loader that draws no random number from the generator of dropout.

    Args:
        config: The configuration.
        data: The splits.
        batches: Which training samples, in which order.
    """
    return DataLoader(
        replace(data.train, seed=config.seed),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        # Without its own generator a loader draws from the one of dropout, once per start.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401
    return batch
