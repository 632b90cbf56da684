from itertools import chain, islice

import pytest
from torch.utils.data import DataLoader, Dataset

from cggm_seg.batches import EndlessBatches
from cggm_seg.dataset import EpochSampler


class Echo(Dataset):
    """Gives its index back."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index


def batches(count, batch_size=3, **options):
    sampler = EpochSampler(7, seed=5)
    return list(islice(EndlessBatches(sampler, batch_size, **options), count))


def test_epochs_follow_each_other_in_full_batches():
    first, second, third, fourth = batches(4)
    assert [len(batch) for batch in (first, second, third, fourth)] == [3] * 4
    assert {epoch for epoch, _ in first + second} == {1}
    assert {epoch for epoch, _ in third + fourth} == {2}
    for epoch in (first + second, third + fourth):
        positions = {position for _, position in epoch}
        assert len(positions) == 6
        assert positions < set(range(7))
    assert [p for _, p in first + second] != [p for _, p in third + fourth]


def test_order_is_the_samplers():
    sampler = EpochSampler(7, seed=5)
    sampler.set_epoch(1)
    assert [*chain.from_iterable(batches(2))] == list(sampler)[:6]


def test_later_start_gives_the_batches_of_that_epoch():
    assert batches(2, first_epoch=2) == batches(4)[2:]


@pytest.mark.parametrize(("batch_size", "length"), [(1, 7), (2, 3), (7, 1), (8, 1), (100, 1)])
def test_length_is_that_of_one_epoch(batch_size, length):
    assert len(EndlessBatches(EpochSampler(7), batch_size)) == length
    each = [len(batch) for batch in batches(2 * length, batch_size)]
    assert each == [min(batch_size, 7)] * 2 * length


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_goes_on_without_end(workers):
    sampler = EndlessBatches(EpochSampler(7, seed=5), 3)
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=workers)
    epochs = [epochs.tolist() for epochs, _ in islice(loader, 5)]
    assert epochs == [[1] * 3, [1] * 3, [2] * 3, [2] * 3, [3] * 3]
