"""Gradient blending: its weights on hand-computed numbers, when they are measured, its loss."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods.gblending import GradientBlending, blending_weights
from cggm.trials import TrialLosses, Trials
from tests.cggm.networks import NAMES, LinearHead, accuracy, late_batch, make_late
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every

BATCHES = [late_batch(seed=seed) for seed in range(4)]
HELD_OUT = [late_batch(seed=seed) for seed in (8, 9)]
cross_entropy = nn.functional.cross_entropy


class CountedTrials(Trials):
    """Counts the copies that are asked for."""

    copies = 0

    def copy(self, heads):
        self.copies += 1
        return super().copy(heads)


def make_trials(network, lr=0.1):
    return CountedTrials(
        network,
        cross_entropy,
        lambda epoch: BATCHES,
        lambda epoch: HELD_OUT,
        lambda p: torch.optim.SGD(p, lr=lr),
    )


def make(heads, trials=None, **settings):
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return GradientBlending(heads, cross_entropy, accuracy, trials, **settings)


def train(network, criterion, batches, accumulation=1):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for index, (inputs, target) in enumerate(batches):
        (criterion(network(inputs), target) / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


class ScriptedTrials:
    """A copy whose losses are given one after another, and that notes what is fitted."""

    def __init__(self, *losses):
        self.given, self.fitted = iter(losses), []

    def losses(self):
        return next(self.given)

    def copy(self, heads):
        return self

    def fit(self, weights, epochs):
        self.fitted.append((weights.tolist(), epochs))


def test_branches_are_tried_alone_and_the_fused_one_apart():
    network, heads = make_late(names="ab")

    def losses(train, valid):
        return TrialLosses(torch.tensor(train), torch.tensor(valid))

    before = losses([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    # the fused entry after the branches' trial, and theirs after the fused one's, must not count
    alone = losses([0.3, 0.7, 9.0], [0.5, 0.8, 9.0])
    fused = losses([9.0, 9.0, 0.2], [9.0, 9.0, 0.6])
    trials = ScriptedTrials(before, alone, fused)
    method = make(heads, trials, epochs=3).bind(network)
    method.start_epoch(1)
    assert trials.fitted == [([1.0, 1.0, 0.0], 3), ([0.0, 0.0, 1.0], 3)]
    # dG = 0.5, 0.2, 0.4 and dO = 0.2, 0.1, 0.4: 12.5, 20, 2.5 of 35
    assert_close(method.weights, torch.tensor([12.5, 20.0, 2.5]) / 35)


def weights_of(train_losses, valid_losses, floor=1e-4):
    """Weights from rows of losses before and after."""
    (a, b), (c, d) = (torch.tensor(rows) for rows in (train_losses, valid_losses))
    return blending_weights(TrialLosses(a, c), TrialLosses(b, d), floor)


def test_published_weights_on_hand_computed_numbers():
    # Wang et al., CVPR 2020, proposition 1: w = dG / dO^2 / Z
    # dG = 0.4, 0.2, 0.5; dO = (0.6 - 0.4) - 0 = 0.2, (0.8 - 0.7) - 0 = 0.1,
    # (0.5 - 0.2) - (-0.2) = 0.5; ratios 10, 20, 2
    found = weights_of([[1.0, 1.0, 1.2], [0.4, 0.7, 0.2]], [[1.0, 1.0, 1.0], [0.6, 0.8, 0.5]])
    assert_close(found, torch.tensor([10.0, 20.0, 2.0]) / 32)


def test_differences_count_and_not_final_values():
    shift = torch.tensor([5.0, 0.0, 1.0])
    rows = torch.tensor([[1.0, 1.0, 1.2], [0.4, 0.7, 0.2]])
    held = torch.tensor([[1.0, 1.0, 1.0], [0.6, 0.8, 0.5]])
    plain = weights_of(rows.tolist(), held.tolist())
    assert_close(plain, weights_of((rows + 2 * shift).tolist(), (held + shift).tolist()))


def test_limits_of_the_weights_are_ours():
    # the first got worse on held-out data, the second diverged, the third has dO = 0
    before, after = [1.0, 1.0, 1.0, 1.0], [0.5, float("nan"), 0.8, 0.7]
    found = weights_of([before, after], [before, [1.1, float("nan"), 0.8, 0.8]], floor=0.0025)
    # 0.2 / 0.0025 = 80 and 0.2 / 0.1^2 = 20
    assert_close(found, torch.tensor([0.0, 0.0, 0.8, 0.2]))
    worse = weights_of([before, before], [before, [1.1] * 4])
    assert_close(worse, torch.full((4,), 0.25))


def test_loss_is_the_blend_and_the_networks_gradient_its_own():
    # K400, R3D-50, audio and RGB, Wang et al. table: .014 audio, .630 video, .356 both
    names = ("audio", "video")
    network, heads = make_late(names)
    other, others = copy.deepcopy((network, heads))
    inputs, target = late_batch(names=names)
    method = make(heads, weights={"fused": 0.356, "audio": 0.014, "video": 0.63}).bind(network)
    loss = method(network(inputs), target)
    expected = 0.356 * cross_entropy(other(inputs), target)
    for index, (name, weight) in enumerate({"audio": 0.014, "video": 0.63}.items()):
        alone = others[name](other.encoders[name](inputs[:, index]))
        expected = expected + weight * cross_entropy(alone, target)
    assert_close(loss, expected)
    assert_close(method.readings["term"], torch.tensor([0.014, 0.63]))
    loss.backward()
    expected.backward()
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_the_fused_loss_alone_is_joint_training_while_heads_learn():
    network, heads = make_late(dropout=0.3)
    joint, start = copy.deepcopy((network, heads))
    torch.manual_seed(1)
    method = make(heads, weights={"fused": 1.0}).bind(network)
    method.start_epoch(1)
    train(network, method, BATCHES)
    torch.manual_seed(1)
    train(joint, cross_entropy, BATCHES)
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), joint.parameters(), strict=True)
    )
    assert not torch.equal(heads["text"].output_layer.weight, start["text"].output_layer.weight)


def test_weights_are_measured_by_training_every_branch_alone():
    network, heads = make_late()
    trials = make_trials(network)
    start = copy.deepcopy(network.state_dict())
    rows = []
    for position in range(4):
        trial = trials.copy(heads)
        first = trial.losses()
        trial.fit(torch.eye(4)[position], 2)
        last = trial.losses()
        rows.append([x[position] for x in (first.train, last.train, first.valid, last.valid)])
    a, b, c, d = torch.tensor(rows).T
    expected = blending_weights(TrialLosses(a, c), TrialLosses(b, d), 1e-4)
    method = make(heads, trials, epochs=2).bind(network)
    method.start_epoch(1)
    assert_close(method.weights, expected)
    assert expected.max() > 0.3
    assert every(torch.equal(start[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("mode", "estimates"), [("offline", [1]), ("online", [1, 3, 5])])
def test_when_weights_are_measured(mode, estimates):
    network, heads = make_late()
    trials = make_trials(network)
    method = make(heads, trials, mode=mode, epochs=1, every=2).bind(network)
    found = []
    for epoch in range(1, 6):
        copies, weights = trials.copies, method.weights.clone()
        method.start_epoch(epoch)
        method.start_epoch(epoch)
        if trials.copies > copies:
            assert trials.copies == copies + 2
            assert not torch.equal(weights, method.weights)
            found.append(epoch)
        train(network, method, BATCHES)
    assert found == estimates


def test_a_resumed_run_does_not_measure_again_within_a_super_epoch():
    network, heads = make_late()
    method = make(heads, make_trials(network), mode="online", epochs=1, every=3).bind(network)
    method.start_epoch(1)
    train(network, method, BATCHES[:1])
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    again, others = make_late(seed=3)
    trials = make_trials(again)
    restored = make(others, trials, mode="online", epochs=1, every=3).bind(again)
    restored.load_state_dict(torch.load(file, weights_only=True))
    restored.start_epoch(2)
    restored.start_epoch(3)
    assert trials.copies == 0
    assert torch.equal(restored.weights, method.weights)
    restored.start_epoch(4)
    assert trials.copies == 2


def test_accumulation_equals_the_whole_batch():
    ends = []
    inputs, target = BATCHES[0]
    for parts in (1, 4):
        network, heads = make_late()
        method = make(heads, weights=dict.fromkeys([*NAMES, "fused"], 1.0)).bind(network)
        batches = zip(inputs.chunk(parts), target.chunk(parts), strict=True)
        train(network, method, list(batches), accumulation=parts)
        ends.append([*network.parameters(), *method.parameters(), *method.buffers()])
    for p, q in zip(*ends, strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_loop_that_starts_no_epoch_is_told():
    network, heads = make_late()
    method = make(heads, make_trials(network)).bind(network)
    with pytest.raises(RuntimeError, match=r"measured before training.*`start_epoch"):
        method(network(BATCHES[0][0]), BATCHES[0][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`trials` to measure weights by, or `weights`"),
        ({"weights": {"txt": 1.0}}, r"`weights` of \['text', 'audio', 'video', 'fused'\].*txt"),
        ({"weights": {"text": -1.0}}, "not negative"),
        ({"weights": {"text": 0.0}}, "not all 0"),
        ({"weights": {"fused": float("nan")}}, "finite"),
        ({"mode": "daily"}, "`mode` 'offline' or 'online'"),
        ({"every": 0}, "at least 1"),
        ({"floor": 0.0}, "`floor` positive"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make({n: LinearHead() for n in NAMES}, **settings)


def test_a_step_does_not_wait_for_the_device():
    network, heads = make_late()
    method = make(heads, make_trials(network), epochs=1).bind(network)
    method.start_epoch(1)
    train(network, method, BATCHES[:1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with NoSynchronization():
        for inputs, target in BATCHES[1:3]:
            optimizer.zero_grad(set_to_none=False)
            for _ in range(2):
                method(network(inputs), target).backward()
            optimizer.step()
