"""Batches that lack modalities, wholly or for some samples: heads, scores, gradients, windows."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm import BalanceHandler, Balancer
from cggm.methods import OGM, ConstantFactors, UnimodalLosses
from tests.cggm.contract_runs import acting, batches_of, make
from tests.cggm.networks import NAMES, Late, LinearHead, accuracy, late_batch, make_cggm, make_late

cross_entropy = nn.functional.cross_entropy
SOME = torch.arange(16) < 6  # of the batch's 16 samples
INPUTS, TARGET = late_batch()


class Skipping(Late):
    """Runs no encoder of a modality that is left out of the inputs."""

    def forward(self, inputs):
        if isinstance(inputs, dict):
            zeros = torch.zeros(16, 6)
            found = {n: e(inputs[n]) if n in inputs else zeros for n, e in self.encoders.items()}
            return self.decode(found)
        return super().forward(inputs)


def without(*names):
    return {n: x for n, x in zip(NAMES, INPUTS.unbind(1), strict=True) if n not in names}


def skipping(seed=0):
    torch.manual_seed(seed)
    return Skipping(), {name: LinearHead() for name in NAMES}


def step(network, balancer, inputs, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer.zero_grad()
    loss = balancer(network(inputs), TARGET)
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_a_head_sees_and_scores_the_samples_that_have_its_modality():
    network, heads = make_late()
    cggm = make_cggm(heads, gate=None, gain="batch").bind(network)
    alone = copy.deepcopy(cggm.heads["text"])
    features = network.encoders["text"](INPUTS[:6, 0]).detach()
    prediction = alone(features)
    loss = cross_entropy(prediction, TARGET[:6])
    loss.backward()
    cggm.present({"text": SOME})
    cggm(network(INPUTS), TARGET).backward()
    assert_close(cggm.readings["head_loss"][0], loss.detach())
    assert_close(cggm.readings["score"][0], accuracy(prediction, TARGET[:6]))
    torch.optim.SGD(network.parameters(), lr=0.0).step()
    for p, q in zip(cggm.heads["text"].parameters(), alone.parameters(), strict=True):
        assert_close(p, q - 0.1 * q.grad)


def test_gradients_of_samples_without_the_modality_are_not_scaled():
    network, _ = make_late()
    parts = []
    for rows in (SOME, ~SOME):  # the network's own gradient by kind of sample
        twin = copy.deepcopy(network)
        (cross_entropy(twin(INPUTS), TARGET, reduction="none")[rows].sum() / 16).backward()
        parts.append(list(twin.encoders["text"].parameters()))
    balancer = ConstantFactors(cross_entropy, factors=0.25).bind(network)
    balancer.present({"text": SOME, "audio": False})
    balancer(network(INPUTS), TARGET).backward()
    for p, have, lack in zip(network.encoders["text"].parameters(), *parts, strict=True):
        assert_close(p.grad, 0.25 * have.grad + lack.grad)
    whole = copy.deepcopy(network)
    whole.zero_grad()
    cross_entropy(whole(INPUTS), TARGET).backward()
    for name, factor in (("audio", 1.0), ("video", 0.25)):
        ours, theirs = (n.encoders[name].parameters() for n in (network, whole))
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p.grad, factor * q.grad)


@pytest.mark.parametrize("told", [True, False])
def test_a_modality_that_the_whole_batch_lacks_keeps_head_and_state(told):
    network, heads = skipping()
    cggm = make_cggm(heads).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step(network, cggm, without(), optimizer)
    before, tracker = copy.deepcopy(cggm.heads), copy.deepcopy(cggm.scores)
    if told:
        cggm.present({"audio": False})
    step(network, cggm, without("audio"), optimizer)
    assert cggm.scores.missed.tolist() == [0, 1, 0]
    for name in ("fast", "slow"):
        now, then = getattr(cggm.scores, name), getattr(tracker, name)
        assert (now == then).tolist() == [False, True, False], name
    assert cggm.scores.last[1] == tracker.last[1]
    weights = [cggm.heads.output_weight(name) for name in NAMES]
    same = [torch.equal(w, before.output_weight(n)) for n, w in zip(NAMES, weights, strict=True)]
    assert same == [False, True, False]
    for name in ("score", "term", "cosine", "head_loss", "gate"):
        assert cggm.readings[name].isnan().tolist() == [False, True, False], name
    assert network.encoders["audio"][0].weight.grad is None


def test_gains_count_the_steps_in_which_a_modality_was_seen():
    network, heads = skipping()
    cggm = make_cggm(heads, gate=None).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    scores = []
    for inputs in (without(), without("audio"), without("audio"), without()):
        step(network, cggm, inputs, optimizer)
        scores.append(cggm.readings["score"][1].item())
    assert cggm.scores.steps == 4
    assert cggm.scores.missed.tolist() == [0, 2, 0]
    first, _, _, last = scores
    fast = (0.9 * 0.1 * first + 0.1 * last) / (1 - 0.9**2)
    slow = (0.99 * 0.01 * first + 0.01 * last) / (1 - 0.99**2)
    cggm(network(without("audio")), TARGET)
    assert cggm.scores.gains(cggm.window)[1].item() == pytest.approx(fast - slow, abs=1e-6)


def test_a_head_learns_from_the_micro_batches_that_have_its_modality():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    only = copy.deepcopy(cggm.heads["text"])
    cross_entropy(only(network.encoders["text"](INPUTS[:8, 0]).detach()), TARGET[:8]).backward()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for x, y, there in zip(INPUTS.chunk(2), TARGET.chunk(2), (True, False), strict=True):
        cggm.present({"text": there})
        (cggm(network(x), y) / 2).backward()
    optimizer.step()
    for p, q in zip(cggm.heads["text"].parameters(), only.parameters(), strict=True):
        assert_close(p, q - 0.1 * q.grad)


def test_the_heads_losses_are_of_samples_that_have_the_modality():
    network, heads = make_late()
    twin = copy.deepcopy(network)
    alone = cross_entropy(heads["text"](twin.encoders["text"](INPUTS[:6, 0])), TARGET[:6])
    others = [
        cross_entropy(heads[n](twin.encoders[n](INPUTS[:, i + 1])), TARGET)
        for i, n in enumerate(NAMES[1:])
    ]
    expected = cross_entropy(twin(INPUTS), TARGET) + alone + sum(others)
    expected.backward()
    method = UnimodalLosses(copy.deepcopy(heads), cross_entropy, accuracy).bind(network)
    method.present({"text": SOME})
    loss = method(network(INPUTS), TARGET)
    loss.backward()
    assert_close(loss, expected)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_ogm_compares_nothing_while_a_modality_is_not_seen():
    network, heads = skipping()
    ogm = OGM(heads, cross_entropy, alpha=0.8).bind(network)
    step(network, ogm, without())
    assert ogm.readings["term"].min() < 1
    step(network, ogm, without("audio"))
    assert ogm.readings["term"][[0, 2]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["UnimodalEnsemble", "UnimodalTeacher", "GradientBlending"])
def test_other_methods_that_leave_modalities_out(name):
    network = make(name)
    balancer = acting(name, network)
    balancer.start_epoch(1)
    inputs, target = batches_of()[0]
    full = balancer(network(inputs), target).detach()
    balancer.present({"text": torch.arange(16) < 4, "video": False})
    loss = balancer(network(inputs), target)
    loss.backward()
    assert loss.isfinite()
    assert loss != full


@pytest.mark.parametrize("name", ["AGM", "Greedy", "PMR", "QMF", "ReconBoost", "OPM"])
def test_methods_that_cannot_leave_a_modality_out_refuse(name):
    network = make(name)
    balancer = acting(name, network)
    balancer.start_epoch(1)
    balancer.identify(torch.arange(16))
    inputs, target = batches_of()[0]
    balancer.present({"text": torch.arange(16) < 4})
    with pytest.raises(ValueError, match=r"cannot leave one out.*\['text'\].*such as CGGM"):
        balancer(network(inputs), target)


def test_masks_of_all_samples_change_nothing():
    found = []
    for told in ({}, {"text": torch.ones(16, dtype=torch.bool), "audio": True}):
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
        cggm.present(told)
        step(network, cggm, INPUTS)
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"depth": False}, "modalities of.*but got .*depth"),
        ({"text": torch.ones(3, dtype=torch.bool), "audio": SOME}, "masks of one shape"),
        (dict.fromkeys(NAMES, SOME), "sample 6 of the batch has none"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(masks, message):
    network, _ = make_late()
    balancer = Balancer(cross_entropy).bind(network)

    def tell():
        balancer.present(masks)
        balancer(network(INPUTS), TARGET)

    with pytest.raises(ValueError, match=message):
        tell()


def test_features_without_a_batch_axis_in_front_are_refused():
    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x).T

    class Network(Late):
        def forward(self, inputs):
            pairs = zip(self.encoders.values(), inputs.unbind(1), strict=True)
            return self.decode({n: e(x).T for n, (e, x) in zip(NAMES, pairs, strict=True)})

    class Head(LinearHead):
        def forward(self, features):
            return self.output_layer(features.T)

    network = Network()
    network.encoders = nn.ModuleDict({n: Turned(5, 6) for n in NAMES})
    cggm = make_cggm({n: Head() for n in NAMES}).bind(network)
    cggm.present({"text": SOME})
    with pytest.raises(ValueError, match=r"batch of 16 samples as the first axis.*'text'"):
        cggm(network(INPUTS), TARGET)


def test_an_encoder_that_never_ran_is_no_absent_modality_unless_it_is_said():
    network, heads = skipping()
    cggm = make_cggm(heads).bind(network)
    with pytest.raises(RuntimeError, match=r"'audio' to run.*present\(\{'audio': False\}\)"):
        cggm(network(without("audio")), TARGET)
    cggm.present({"audio": False})
    assert cggm(network(without("audio")), TARGET).isfinite()
    cggm.present({"text": False})
    with pytest.raises(RuntimeError, match="'audio' to run"):
        cggm(network(without("audio", "text")), TARGET)


def test_a_handler_says_what_a_batch_lacks():
    from ignite.engine import Engine

    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = Engine(lambda e, batch: step(network, cggm, batch["inputs"], optimizer))
    BalanceHandler(cggm, present=lambda batch: batch["present"]).attach(engine)
    engine.run([{"inputs": INPUTS, "present": {"video": False}}], max_epochs=1)
    assert engine.state.balance["term"].isnan().tolist() == [False, False, True]


def test_state_of_old_runs_has_missed_nothing():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    step(network, cggm, INPUTS)
    state = {k: v for k, v in cggm.state_dict().items() if not k.endswith("missed")}
    assert len(state) == len(cggm.state_dict()) - 2
    other = make_cggm({n: LinearHead() for n in NAMES}).bind(make_late(seed=1)[0])
    other.load_state_dict(state)
    assert other.scores.missed.tolist() == other.scores.chance.missed.tolist() == [0, 0, 0]
    assert torch.equal(other.scores.fast, cggm.scores.fast)


def test_the_update_of_an_encoder_that_saw_nothing_is_left_as_it_is():
    network, heads = skipping()
    cggm = make_cggm(heads, acts_on="update", direction=None, gate=None).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        step(network, cggm, INPUTS, optimizer)
    weight = next(network.encoders["text"].parameters())
    moving, before = optimizer.state[weight]["momentum_buffer"].clone(), weight.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    cggm.present({"text": False})
    cggm(network(without("text")), TARGET).backward()
    optimizer.step()
    assert moving.abs().max() > 0
    assert_close(weight - before, -0.1 * 0.9 * moving)
