"""The order of the training samples: epoch after epoch, from a single iterator."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler

from cggm.runs.loop.seeds import rng_state, seed_everything, set_rng_state


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


class Loader(Protocol):
    """Batches of an epoch, and how many they are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def begin_after(batches: int, loader: Loader, *, seed: int) -> Loader:
    """A loader without end that begins where a training is.

    Args:
        batches: That it had so far, of any number of epochs.
        loader: One over :class:`EndlessBatches` is told where to begin; any other one is replayed,
            see :class:`ReplayedLoader`.
        seed: Of the order of any other one.
    """
    own = getattr(loader, "batch_sampler", None)
    if isinstance(own, EndlessBatches):
        own.skip(batches)
        return loader
    replayed = ReplayedLoader(loader, seed)
    replayed.skip(batches)
    return replayed


class ReplayedLoader:
    """Any loader, epoch after epoch without end, in an order that seed and epoch determine.

    A resumed run draws the batches that the interrupted one saw, drops them and goes on with the
    next one. What a data set draws in this process, or in workers that live for an epoch, comes
    back too; generators that it keeps for itself and persistent workers do not.

    Args:
        loader: Gives the batches of an epoch each time it is iterated, and has a length.
        seed: Of the order.
    """

    def __init__(self, loader: Any, seed: int) -> None:  # noqa: ANN401
        self._loader, self._seed = loader, seed
        self._skipped = 0

    def skip(self, batches: int) -> None:
        """Begin later, as if so many batches were given, of any number of epochs."""
        self._skipped = batches

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        epochs, skipped = divmod(self._skipped, len(self))
        for epoch in count(1 + epochs):
            yield from self._epoch(epoch, skipped)
            skipped = 0

    def _epoch(self, epoch: int, skipped: int) -> Iterator[Any]:
        state = rng_state()  # of the training, which goes on as if nothing was drawn here
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        seed_everything(seed)
        parts: list[Any] = [self._loader, getattr(self._loader, "sampler", None)]
        for part in parts:
            if getattr(part, "generator", None) is not None:
                part.generator.manual_seed(seed)
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        batches = iter(self._loader)
        # Samplers draw their order with the first batch.
        first = list(islice(batches, max(skipped, 1)))
        set_rng_state(state)
        yield from first[skipped:]
        yield from batches
