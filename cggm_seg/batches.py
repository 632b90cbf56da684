"""Batches of one epoch after another, from a single iterator."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from cggm_seg.dataset import EpochSampler


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

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.first_epoch
        while True:
            self.sampler.set_epoch(epoch)
            order = list(self.sampler)
            for start in range(0, len(self) * self.batch_size, self.batch_size):
                yield order[start : start + self.batch_size]
            epoch += 1
