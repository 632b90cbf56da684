"""Modality dropout: how often what is dropped, what dropping means, and that draws repeat."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from cggm.methods.mrd import ModalityDropout
from tests.cggm.networks import NAMES, late_batch, make_late, train
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every
from tests.ranks import on_two_ranks

PAIR = ("audio", "video")
P = {"video": 0.75, "audio": 0.5}


def make(names=NAMES, **settings):
    network, _ = make_late(names)
    return network, ModalityDropout(nn.functional.cross_entropy, **settings).bind(network)


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def masks(dropout, size=20_000, names=PAIR):
    """Which samples keep which modality, ``(B, M)``."""
    return torch.stack([dropout.fuse(name, torch.ones(size, 1))[:, 0] for name in names], 1)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_modalities_stay_as_often_as_the_condition_says(per):
    # q = (1 - p) / (1 - .5 * .75) = .8 and .4 under the condition; none is
    # left empty; both stay with .5 * .25 / .625 = .2
    _, dropout = make(PAIR, p=P, per=per)
    if per == "sample":
        kept = masks(dropout)
    else:
        rows = []
        for _ in range(2000):
            rows.append(masks(dropout, 3))
            assert (rows[-1] == rows[-1][:1]).all()
            dropout.clock.steps += 1
        kept = torch.stack([row[0] for row in rows])
    assert kept.any(1).all()
    assert_close(kept.mean(0), torch.tensor([0.8, 0.4]), rtol=0, atol=0.03)
    assert_close(kept.all(1).float().mean(), torch.tensor(0.2), rtol=0, atol=0.03)


def test_scaled_features_keep_their_mean():
    _, dropout = make(PAIR, p=P, scale=True)
    kept = masks(dropout)
    assert_close(kept.max(0).values, torch.tensor([1 / 0.8, 1 / 0.4]))
    assert_close(kept.mean(0), torch.ones(2), rtol=0, atol=0.03)


@pytest.mark.parametrize("names", [PAIR, NAMES])
def test_uniform_subsets_are_equally_likely(names):
    _, dropout = make(names, subsets="uniform", p=0.0)
    kept = masks(dropout, names=names)
    codes = (kept * 2 ** torch.arange(len(names))).sum(1).long()
    shares = torch.bincount(codes, minlength=2 ** len(names)) / len(codes)
    expected = torch.full_like(shares, 1 / (2 ** len(names) - 1))
    expected[0] = 0
    assert_close(shares, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("scale", [True, False])
def test_a_single_modality_is_never_dropped(scale):
    _, dropout = make(("audio",), p=0.9, scale=scale)
    assert (masks(dropout, names=("audio",)) == 1).all()


def test_masks_become_false_and_numbers_zero():
    _, dropout = make(PAIR, p=0.5, scale=True)
    features = {"x": torch.ones(50, 4, 3), "real": torch.ones(50, 4, dtype=torch.bool), "tag": "a"}
    dropped = dropout.fuse("audio", features)
    kept = dropped["x"].amax((1, 2)) > 0
    assert 0 < kept.sum() < 50
    assert torch.equal(dropped["real"], kept[:, None].expand(50, 4))
    assert_close(dropped["x"], kept[:, None, None] * torch.ones(50, 4, 3) * 1.5)
    assert dropped["tag"] == "a"
    assert features["real"].all()


def test_dropped_samples_give_gradients_of_zero():
    network, dropout = make(PAIR, p={"audio": 0.0, "video": 0.999}, per="batch")
    inputs, target = late_batch(names=PAIR)
    dropout(network(inputs), target).backward()
    assert dropout.readings["term"].tolist() == [1.0, 0.0]
    assert every((p.grad == 0).all() for p in network.encoders["video"].parameters())
    assert network.encoders["audio"][0].weight.grad.abs().sum() > 0


def test_heads_and_batch_statistics_see_what_was_not_dropped():
    network, dropout = make(p=0.9)
    seen = {}
    dropout.loss = lambda step: seen.update(step.features) or step.loss
    inputs, target = late_batch()
    dropout(network(inputs), target)
    for name, x in zip(NAMES, inputs.unbind(1), strict=True):
        assert torch.equal(seen[name], network.eval().encoders[name](x))


def test_readings_are_the_shares_kept():
    network, dropout = make(p=0.5)
    inputs, target = late_batch()
    kept = masks(dropout, 16, NAMES)
    dropout(network(inputs), target)
    assert torch.equal(dropout.readings["term"], kept.mean(0))
    assert 0 < kept.mean() < 1


def test_draws_change_with_seed_step_and_micro_batch_and_touch_no_generator():
    network, dropout = make(p=0.5)
    _, other = make(p=0.5, seed=1)
    state = torch.get_rng_state()
    first = masks(dropout, 64)
    assert torch.equal(first, masks(dropout, 64))
    assert not torch.equal(first, masks(other, 64))
    inputs, target = late_batch()
    dropout(network(inputs), target)
    second = masks(dropout, 64)
    sgd(network).step()
    third = masks(dropout, 64)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(state, torch.get_rng_state())


def test_a_resume_repeats_the_draws():
    network, dropout = make(p=0.5)
    optimizer = sgd(network)
    train(network, optimizer, dropout, [late_batch(seed=s) for s in range(2)])
    file = io.BytesIO()
    torch.save(dropout.state_dict(), file)
    whole = train(network, optimizer, dropout, [late_batch(seed=s) for s in range(2, 5)])
    file.seek(0)
    network, again = make(p=0.5)
    again.load_state_dict(torch.load(file, weights_only=True))
    resumed = train(network, sgd(network), again, [late_batch(seed=s) for s in range(2, 5)])
    assert torch.equal(torch.stack(whole), torch.stack(resumed))
    assert not torch.equal(whole[0], whole[1])


def test_a_recomputed_region_repeats_its_masks():
    gradients = []
    for recomputed in (False, True):
        network, dropout = make(p=0.5)
        forward = network.forward

        def checkpointed(inputs, forward=forward):
            return checkpoint(forward, inputs, use_reentrant=False)

        run = checkpointed if recomputed else forward
        for seed in range(2):
            inputs, target = late_batch(seed=seed)
            dropout(run(inputs), target).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [True, False])
def test_nothing_dropped_is_joint_training(scale):
    network, dropout = make(p=0.0, scale=scale)
    joint = copy.deepcopy(network)
    batches = [late_batch(seed=seed) for seed in range(4)]
    train(network, sgd(network), dropout, batches)
    optimizer = sgd(joint)
    for inputs, target in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert torch.equal(p, q)


def test_evaluation_drops_nothing():
    network, dropout = make(p=0.9)
    inputs, _ = late_batch()
    network.eval()
    prediction = network(inputs)
    dropout.unbind()
    assert torch.equal(prediction, network(inputs))


def test_a_step_never_waits_for_the_device():
    network, dropout = make(p=0.5, scale=True)
    inputs, target = late_batch()
    with NoSynchronization():
        dropout(network(inputs), target).backward()
        sgd(network).step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, r"`p` in \[0, 1\), but got 1.0"),
        ({"p": {"audio": -0.1}}, r"`p` in \[0, 1\), but got -0.1"),
        ({"p": float("nan")}, "but got nan"),
        ({"per": "step"}, "`per` 'sample', 'batch' or 'case', but got 'step'"),
        ({"per": "case"}, "Expected `samples`, of which each has a draw"),
        ({"subsets": "all"}, "`subsets` 'independent' or 'uniform', but got 'all'"),
        ({"p": {"audio": 0.1}}, r"`p` for the modalities .*got \['audio'\]"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_case_lacks_the_same_modalities_in_every_epoch():
    network, dropout = make(p=0.5, per="case", samples=40)
    shown = torch.tensor([[3, 7, 7, 39], [39, 0, 3, 7]])
    first, second = [], []
    for rows, found in zip(shown, (first, second), strict=True):
        dropout.identify(rows)
        found.append(masks(dropout, 4, NAMES))
        inputs, target = late_batch(4)
        dropout(network(inputs), target).backward()
        sgd(network).step()
    assert torch.equal(first[0][[0, 1, 3]], second[0][[2, 3, 0]])
    assert torch.equal(first[0][1], first[0][2])
    dropout.identify(torch.arange(40))
    drawn = masks(dropout, 40, NAMES)
    assert len(drawn.unique(dim=0)) > 3
    assert drawn.any(1).all()
    assert_close(drawn.mean(0), dropout.draws.shares())
    again = make(p=0.5, per="case", samples=40, seed=1)[1]
    again.identify(torch.arange(40))
    assert not torch.equal(masks(again, 40, NAMES), drawn)


def test_rates_of_cases_are_the_missing_rates():
    # of the published rates .2 .4 .6 .8: kept with (1 - p) / (1 - .0384) each
    names = ("t1", "t1ce", "flair", "t2")
    rates = dict(zip(names, (0.2, 0.4, 0.6, 0.8), strict=True))
    _, dropout = make(names, p=rates, per="case", samples=20_000)
    dropout.identify(torch.arange(20_000))
    expected = torch.tensor([0.8320, 0.6240, 0.4160, 0.2080])
    assert_close(masks(dropout, names=names).mean(0), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "16 samples in the training data before the forward pass.*got none.*identify"),
        (torch.arange(3), r"got shape \(3,\)"),
        (torch.arange(10, 26), "below `samples`, 20, but got 10 to 25"),
    ],
)
def test_cases_have_to_be_told(told, message):
    network, dropout = make(p=0.5, per="case", samples=20)
    if told is not None:
        dropout.identify(told)
    with pytest.raises((RuntimeError, ValueError), match=message):
        network(late_batch()[0])


def test_batches_of_different_sizes_are_refused():
    network, dropout = make(p=0.5)
    inputs, target = late_batch()
    prediction = network(inputs)
    network.encoders["video"](torch.zeros(32, 5))
    with pytest.raises(ValueError, match=r"sizes \{'text': 16, 'audio': 16, 'video': 32\}"):
        dropout(prediction, target)


def draws_of_rank(rank):
    """What is kept on this rank, and what the network is after a step."""
    sizes = {"sample": 40, "batch": 40 + rank}
    kept = {per: masks(make(p=0.5, per=per)[1], size) for per, size in sizes.items()}
    network, dropout = make(p=0.5)
    dropout.unbind()
    wrapped = DistributedDataParallel(network)
    dropout.bind(wrapped)
    inputs, target = late_batch(seed=rank)
    dropout(wrapped(inputs), target).backward()
    sgd(network).step()
    return [kept, network.state_dict()]


def test_ranks_draw_apart_for_samples_and_alike_for_batches(tmp_path):
    (first, ours), (second, theirs) = on_two_ranks(draws_of_rank, tmp_path)
    assert not torch.equal(first["sample"], second["sample"])
    assert torch.equal(first["batch"], second["batch"][:40])
    assert every(torch.equal(ours[key], theirs[key]) for key in ours)


def test_samples_keep_one_of_the_subsets_of_what_they_have():
    _, dropout = make(subsets="uniform")
    lacking = torch.arange(30_000) < 20_000
    dropout.present({NAMES[0]: ~lacking})
    kept = masks(dropout, len(lacking), NAMES).bool()
    assert not kept[lacking, 0].any()
    # one of three subsets of two modalities, one of seven of all three
    for rows, share in ((kept[lacking], 1 / 3), (kept[~lacking], 1 / 7)):
        found = torch.stack([row.float() for row in rows]).unique(dim=0, return_counts=True)[1]
        assert len(found) == round(1 / share)
        assert_close(found / len(rows), torch.full((len(found),), share), rtol=0, atol=0.02)


def test_a_fifth_is_dropped_where_nothing_is_said():
    kept = masks(make()[1], 5_000)
    assert_close(kept.mean(0), torch.full((len(PAIR),), 0.8), rtol=0, atol=0.05)


@pytest.mark.parametrize("per", ["batch", "case"])
def test_a_sample_that_would_lose_all_it_has_keeps_it(per):
    positions = torch.arange(64)
    _, dropout = make(p=0.9, per=per, samples=64)
    dropout.identify(positions)
    complete = masks(dropout, 64, NAMES).bool()
    dropout.present({NAMES[0]: False, NAMES[1]: positions % 2 == 0})
    present = torch.stack([torch.zeros(64).bool(), positions % 2 == 0, torch.ones(64).bool()], 1)
    expected = complete & present
    lost = ~expected.any(1)
    assert lost.any()
    assert torch.equal(masks(dropout, 64, NAMES).bool(), expected | (lost[:, None] & present))
