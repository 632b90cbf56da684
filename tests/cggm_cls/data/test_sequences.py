import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cggm.errors import UserError
from cggm_cls.data.sequences import (
    MaskedSequence,
    RaggedSequences,
    SequenceDataset,
    TaskData,
    content_digest,
    move,
)


def ragged(*lengths, width=2):
    steps = torch.arange(sum(lengths) * width, dtype=torch.float32).reshape(-1, width)
    return RaggedSequences.from_list(list(steps.split(list(lengths))))


def dataset(views=None, n=4, seed=0):
    audio = ragged(*[2] * n * (views or 1))
    return SequenceDataset(
        {"text": ragged(*range(1, n + 1)), "audio": audio},
        torch.arange(n),
        [f"s{k}" for k in range(n)],
        views={"audio": views} if views else {},
        seed=seed,
    )


def test_padding_ends_at_the_longest_of_the_batch():
    values, mask = ragged(1, 3, 2).pad([2, 0])
    assert mask.tolist() == [[True, True], [True, False]]
    assert values.tolist() == [[[8, 9], [10, 11]], [[0, 1], [0, 0]]]
    assert values.dtype == torch.float32


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_padded_sequences_keep_their_real_steps_in_order(rows):
    mask = torch.tensor(rows)
    values = torch.rand(*mask.shape, 3)
    kept = RaggedSequences.from_padded(values, mask)
    assert kept.lengths.tolist() == mask.sum(1).tolist()
    for n in range(len(rows)):
        padded, real = kept.pad([n])
        assert torch.equal(padded[0][real[0]], values[n][mask[n]])


def test_empty_sequences_give_one_masked_step():
    values, mask = ragged(0, 0).pad([1, 0])
    assert values.shape == (2, 1, 2)
    assert not mask.any()
    assert not values.any()


def test_half_precision_is_kept_and_given_as_float32():
    half = RaggedSequences(torch.rand(3, 2).half(), torch.tensor([0, 1, 3]))
    assert half.pad([1]).values.dtype == torch.float32
    assert torch.equal(half.pad([1]).values[0], half.values[1:].float())


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 3], [0, 2], [], [0, 4]])
def test_impossible_offsets_are_refused(offsets):
    with pytest.raises(ValueError, match="Expected offsets that rise from 0"):
        RaggedSequences(torch.rand(3, 2), torch.tensor(offsets, dtype=torch.int64))


def test_a_batch_has_the_samples_that_were_asked_for():
    batch = dataset().batch([3, 1])
    assert batch["target"].tolist() == [3, 1]
    assert batch["ids"] == ["s3", "s1"]
    assert batch["inputs"]["text"].mask.sum(1).tolist() == [4, 2]
    assert dataset().widths == {"text": 2, "audio": 2}


def test_views_depend_on_seed_epoch_and_position_alone():
    data = dataset(views=3, n=40)

    def chosen(epoch, positions, seed=0):
        values = dataset(views=3, n=40, seed=seed).batch(positions, epoch)["inputs"]["audio"].values
        return (values[:, 0, 0] / 4).long().tolist()

    everything = list(range(40))
    first = chosen(1, everything)
    assert [entry // 3 for entry in first] == everything
    assert {entry % 3 for entry in first} == {0, 1, 2}
    assert chosen(1, everything[::-1]) == first[::-1]
    assert chosen(2, everything) != first
    assert chosen(1, everything, seed=1) != first
    keys = [(1, position) for position in everything]
    assert torch.equal(
        data.__getitems__(keys)["inputs"]["audio"].values,
        data.batch(everything, 1)["inputs"]["audio"].values,
    )


def test_evaluation_sees_the_unchanged_view():
    values = dataset(views=3).batch([0, 1, 2, 3])["inputs"]["audio"].values
    assert (values[:, 0, 0] / 4).tolist() == [0, 3, 6, 9]


def test_unequal_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match=r"equally many .*'text': 2.*'target': 3"):
        SequenceDataset({"text": ragged(1, 2)}, torch.arange(3), ["a", "b", "c"])


def test_inputs_move_to_a_device():
    inputs = {"text": MaskedSequence(torch.rand(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))}
    moved = move(inputs, torch.device("meta"))
    assert {x.device.type for x in moved["text"]} == {"meta"}


@pytest.mark.parametrize("name", ["text", "audio"])
def test_the_modalities_that_are_asked_for_stay(name):
    data = TaskData(dataset(), dataset(n=3), dataset(n=2), classes=4, digest="")
    kept = data.only([name])
    for split in ("train", "valid", "test"):
        before, after = getattr(data, split), getattr(kept, split)
        assert list(after.inputs) == [name]
        assert after.inputs[name] is before.inputs[name]
        assert torch.equal(after.target, before.target)
    assert list(data.only(["audio", "text"]).widths) == ["text", "audio"]
    for wrong in ([], ["video"], ["text", "text"]):
        with pytest.raises(UserError, match="modalities"):
            data.only(wrong)


def test_the_digest_tells_sequences_that_are_cut_at_other_places():
    first, second = (
        SequenceDataset({"text": ragged(*lengths)}, torch.arange(2), ["a", "b"])
        for lengths in ((1, 3), (2, 2))
    )
    assert torch.equal(first.inputs["text"].values, second.inputs["text"].values)
    assert content_digest({"train": first}) != content_digest({"train": second})
    assert content_digest({"train": first}) == content_digest({"train": first})
