"""The controls: constant factors and random factors."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods.constant import ConstantFactors
from cggm.methods.random_factors import RandomFactors
from tests.cggm.networks import NAMES, late_batch, make_late, train
from tests.quantifiers import none

BATCHES = [late_batch(seed=seed) for seed in range(6)]
FACTORS = {"video": 1.5, "text": 0.5, "audio": 1.0}
RECORDED = {
    "text": [0.2, 0.4, 0.6],
    "audio": [0.8, 0.9, 0.7],
    "video": [1.0, 0.7, 0.7],
}


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def make(method, names=NAMES, **settings):
    network, _ = make_late(names)
    return network, method(nn.functional.cross_entropy, **settings).bind(network)


def draws(steps=200, names=NAMES, **settings):
    network, balancer = make(RandomFactors, names, **settings)
    batch = late_batch(4, names)
    return torch.stack(train(network, sgd(network, 0.001), balancer, [batch] * steps))


def assert_scaled(network, joint, start, factors):
    for name, factor in factors.items():
        parts = [n.encoders[name].parameters() for n in (network, joint, start)]
        for ours, theirs, before in zip(*parts, strict=True):
            assert_close(ours - before, (theirs - before) * factor, rtol=1e-4, atol=1e-7)
    assert torch.equal(network.fusion[0].weight, joint.fusion[0].weight)
    assert torch.equal(network.output_layer.weight, joint.output_layer.weight)


@pytest.mark.parametrize("acts_on", ["gradient", "update"])
@pytest.mark.parametrize("method", ["constant", "random"])
def test_one_sgd_step_is_the_joint_step_times_the_factors(method, acts_on):
    if method == "constant":
        network, balancer = make(ConstantFactors, factors=FACTORS, acts_on=acts_on)
    else:
        network, balancer = make(RandomFactors, acts_on=acts_on)
    start, joint = copy.deepcopy(network), copy.deepcopy(network)
    optimizer = sgd(joint)
    nn.functional.cross_entropy(joint(BATCHES[0][0]), BATCHES[0][1]).backward()
    optimizer.step()
    (terms,) = train(network, sgd(network), balancer, BATCHES[:1])
    if method == "constant":
        assert terms.tolist() == [0.5, 1.0, 1.5]
    assert_scaled(network, joint, start, dict(zip(NAMES, terms, strict=True)))


@pytest.mark.parametrize("acts_on", ["gradient", "update"])
@pytest.mark.parametrize(
    ("method", "settings"), [(ConstantFactors, {"factors": 1.0}), (RandomFactors, {"terms": [1.0]})]
)
def test_neutral_setting_equals_joint_training_bit_for_bit(method, settings, acts_on):
    network, balancer = make(method, acts_on=acts_on, **settings)
    joint = copy.deepcopy(network)
    train(network, sgd(network), balancer, BATCHES)
    optimizer = sgd(joint)
    for inputs, target in BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("count", "mean"), [(1, 1.0), (2, 0.5), (4, 0.75)])
def test_the_default_constant_is_the_mean_of_cggms_terms(count, mean):
    names = tuple("abcd"[:count])
    network, balancer = make(ConstantFactors, names)
    (terms,) = train(network, sgd(network), balancer, [late_batch(names=names)])
    assert terms.tolist() == [mean] * count


def test_recorded_rows_are_drawn_whole_and_evenly():
    rows = draws(terms=RECORDED)
    recorded = torch.tensor(list(zip(*RECORDED.values(), strict=True)))
    which = (rows[:, None] == recorded).all(2)
    assert (which.sum(1) == 1).all()
    assert ((which.sum(0) > 40) & (which.sum(0) < 95)).all()
    # the order of the record is gone
    assert (which[1:] & which[:-1]).any()


def test_permuted_rows_lose_their_modality():
    rows = draws(terms=RECORDED, permuted=True)
    recorded = torch.tensor(list(zip(*RECORDED.values(), strict=True)))
    same = (rows.sort(1).values[:, None] == recorded.sort(1).values).all(2)
    assert (same.sum(1) == 1).all()
    assert_close(rows.mean(0), torch.full((3,), recorded.mean().item()), rtol=0, atol=0.06)


def test_one_list_is_drawn_from_by_each_modality_alone():
    rows = draws(terms=[0.0, 1.0])
    assert set(rows.flatten().tolist()) == {0.0, 1.0}
    assert (rows[:, 0] != rows[:, 1]).float().mean() > 0.3


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_noise_has_the_range_and_the_sum_of_equation_7(count):
    names = tuple("abcd"[:count])
    rows = draws(names=names)
    assert ((rows >= 0) & (rows <= 1)).all()
    assert_close(rows.sum(1), torch.full((200,), float(max(count - 1, 1))))
    assert count == 1 or rows.std(0).min() > 0.1


def test_draws_depend_on_seed_and_step_alone():
    state = torch.get_rng_state()
    network, balancer = make(RandomFactors, seed=3)
    torch.set_rng_state(state)
    whole = train(network, sgd(network), balancer, BATCHES)
    assert torch.equal(torch.get_rng_state(), state)
    other, again = make(RandomFactors, seed=3)
    torch.manual_seed(99)
    first = train(other, sgd(other), again, BATCHES[:3])
    file = io.BytesIO()
    torch.save(again.state_dict(), file)
    file.seek(0)
    third, resumed = make(RandomFactors, seed=3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    last = train(third, sgd(third), resumed, BATCHES[3:])
    assert torch.equal(torch.stack(whole), torch.stack(first + last))
    assert not torch.equal(draws(6, seed=4), torch.stack(whole))


def test_a_window_and_a_skipped_step_keep_the_draw():
    network, balancer = make(RandomFactors)
    optimizer = sgd(network)
    terms = []
    for index, (inputs, target) in enumerate(BATCHES[:3]):
        balancer(network(inputs), target).backward()
        terms.append(balancer.readings["term"])
        if index == 1:
            optimizer.step()
    assert torch.equal(terms[0], terms[1])
    assert not torch.equal(terms[1], terms[2])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (ConstantFactors, {"factors": -0.5}, "`factors` finite and not negative"),
        (ConstantFactors, {"factors": {"text": float("nan")}}, "`factors` finite"),
        (ConstantFactors, {"factors": {"text": 1.0}}, "`factors` for the modalities"),
        (ConstantFactors, {"acts_on": "loss"}, "`acts_on`"),
        (RandomFactors, {"acts_on": "loss"}, "`acts_on`"),
        (RandomFactors, {"terms": []}, "at least one"),
        (RandomFactors, {"terms": {"text": [1.0], "audio": []}}, "as many `terms`"),
        (RandomFactors, {"terms": {"text": [1.0]}}, "`terms` for the modalities"),
        (RandomFactors, {"terms": [float("inf")]}, "`terms` finite"),
        (RandomFactors, {"permuted": True}, "`terms` by modality"),
    ],
)
def test_wrong_arguments_are_named_and_leave_no_hook(method, settings, message):
    network, _ = make_late()
    with pytest.raises(ValueError, match=message):
        method(nn.functional.cross_entropy, **settings).bind(network)
    assert none(m._forward_hooks for m in network.modules())
