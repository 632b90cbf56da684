"""Batches of a training on sequences: which samples they hold, in which order, and their loader."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cggm.distributed import rank, world_size
from cggm.errors import UserError
from cggm.runs import EndlessBatches, EpochSampler, share_of_batch
from cggm_cls.data import Batch, MaskedSequence, SequenceDataset, TaskData, move
from cggm_cls.training.config import SequenceConfig

Pair = tuple[dict[str, MaskedSequence], Tensor]
"""Inputs by modality, and the target."""


def sequence_batches(config: SequenceConfig, data: TaskData) -> EndlessBatches:
    """Which samples each batch of this rank holds, epoch after epoch.

    Args:
        config: Gives the seed of the order and the batch size, which the ranks share.
        data: The splits, of which the training split is sampled.

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
        config: Gives the seed that chooses the views of each sample.
        data: The splits, of which the training split is loaded.
        batches: Which training samples, in which order.
    """
    return DataLoader(
        replace(data.train, seed=config.seed),
        batch_sampler=batches,
        collate_fn=_unchanged,  # the data set gives whole batches
        # Without its own generator a loader draws from the one of dropout, once per start.
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:  # noqa: ANN401
    return batch


def epoch_batches(config: SequenceConfig, network: nn.Module, data: TaskData) -> Iterator[Pair]:
    """The training split in batches, shuffled, on the network's device.

    Args:
        config: Gives the seed of the order and the batch size.
        network: Only its device is looked up.
        data: The splits.
    """
    device = next(network.parameters()).device
    size, seed = config.batch_size, config.seed
    return shuffled_batches(1, dataset=data.train, size=size, seed=seed, device=device)


def shuffled_batches(
    epoch: int, *, dataset: SequenceDataset, size: int, seed: int, device: torch.device
) -> Iterator[Pair]:
    """One pass over a split in an order of its own.

    It serves what looks at the data besides the training, such as the trial copies of a method;
    the training itself has :func:`sequence_batches`, which a checkpoint can resume.

    Args:
        epoch: Number of the pass; each has its order and its views.
        dataset: The split.
        size: Samples of a batch; the last one may have fewer.
        seed: Of the order.
        device: Where the batches are needed.

    Yields:
        Inputs by modality, and the target.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(dataset)).tolist()
    for start in range(0, len(order), size):
        batch = dataset.batch(order[start : start + size], epoch)
        yield move(batch["inputs"], device), batch["target"].to(device)
