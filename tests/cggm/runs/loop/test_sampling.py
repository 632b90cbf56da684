from itertools import chain, islice

import pytest
from torch.utils.data import DataLoader, Dataset

from cggm.runs.loop.sampling import EndlessBatches, EpochSampler


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skipped", range(7))
def test_loader_begins_anywhere(skipped, workers):
    sampler = EndlessBatches(EpochSampler(9, seed=5), 3)
    sampler.skip(skipped)
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=workers)
    pairs = [
        list(zip(*b, strict=True)) for b in ([x.tolist() for x in b] for b in islice(loader, 5))
    ]
    assert pairs == list(islice(EndlessBatches(EpochSampler(9, seed=5), 3), 12))[skipped:][:5]


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


def test_sampler_permutes_each_epoch_anew():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs, positions = zip(*sampler, strict=True)
        assert set(epochs) == {epoch}
        assert sorted(positions) == list(range(50))
        orders.append(positions)
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("length", [12, 14])
def test_ranks_share_an_epoch_equally(length):
    shards = [list(EpochSampler(length, rank=rank, world=3)) for rank in range(3)]
    assert [len(shard) for shard in shards] == [length // 3] * 3
    assert len(set(chain.from_iterable(shards))) == length // 3 * 3
    assert len(EpochSampler(length, rank=0, world=3)) == length // 3


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 1), (0, 11)])
def test_impossible_ranks_are_refused(rank, world):
    with pytest.raises(ValueError, match="Expected 0 <= `rank`"):
        EpochSampler(10, rank=rank, world=world)
