"""The order of the training samples: epoch after epoch, from a single iterator."""

from collections.abc import Iterator
from itertools import count

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, position)`` for a permutation of the positions that each epoch reshuffles.

    Every rank gets every ``world``-th position; the last few are dropped if they do not suffice
    for all ranks, so all shards are equally long.

    Args:
        length: Number of positions, ``len(dataset)``.
        seed: Base of the permutations.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        ValueError: If the rank is not in [0, world) or there are fewer positions than ranks.
    """

    def __init__(self, length: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world or length < world:
            raise ValueError(
                f"Expected 0 <= `rank` < `world` <= `length`, but got {rank}, {world} and {length}."
            )
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        shard = order[self.rank : len(self) * self.world : self.world]
        return iter([(self.epoch, int(position)) for position in shard])


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Yields full batches of epoch after epoch without end; its length is that of one epoch.

    A loader over it never restarts its workers between epochs. What does not fill a batch at the
    end of an epoch is dropped; a batch larger than an epoch is cut to it.

    Args:
        sampler: Gives the ``(epoch, position)`` pairs of an epoch.
        batch_size: Pairs per batch.
        first_epoch: Where to begin.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, *, first_epoch: int = 1) -> None:
        self.sampler = sampler
        self.batch_size = min(batch_size, len(sampler))
        self.first_epoch = first_epoch
        self._skipped = 0

    def skip(self, batches: int) -> None:
        """Begin later, as if so many batches were given.

        Args:
            batches: Counted from the first one of epoch 1, of any number of epochs.
        """
        self.first_epoch = 1 + batches // len(self)
        self._skipped = batches % len(self)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self._skipped
        for epoch in count(self.first_epoch):
            self.sampler.set_epoch(epoch)
            order = list(self.sampler)
            for start in range(first * self.batch_size, self._end, self.batch_size):
                yield order[start : start + self.batch_size]
            first = 0

    @property
    def _end(self) -> int:
        """Pairs of an epoch that are given."""
        return len(self) * self.batch_size
