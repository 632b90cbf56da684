"""OPM: probabilities of dropping, what is dropped and when, and what it refuses."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods.opm import OPM, _times, drop_probabilities
from cggm.tensors import keep_samples
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    ConvolutionalHead,
    Late,
    LinearHead,
    accuracy,
    late_batch,
    make_late,
)
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every

BATCHES = [late_batch(seed=seed) for seed in range(6)]
cross_entropy = nn.functional.cross_entropy


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def make(seed=0, names=NAMES, **settings):
    network, heads = make_late(names, seed=seed)
    return network, OPM(heads, cross_entropy, **{"warmup_epochs": 0, **settings}).bind(network)


def train(network, criterion, batches, accumulation=1):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for index, (inputs, target) in enumerate(batches):
        losses.append(criterion(network(inputs), target))
        (losses[-1] / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return [loss.detach() for loss in losses]


class Recorded(Late):
    """Keeps the features that its fusion gets."""

    def decode(self, features):
        self.seen = {name: value.detach() for name, value in features.items()}
        return super().decode(features)


class Fixed(nn.Module):
    """A head that gives class 0 the same logit for every sample."""

    def __init__(self, logit: float, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.output_layer = nn.Linear(6, 4)
        self.output_layer.weight.data.zero_()
        self.output_layer.bias.data = torch.tensor([logit, 0.0, 0.0, 0.0])

    def forward(self, features):
        assert features.shape[1] == self.width
        return self.output_layer(features[:, :1].expand(-1, 6))


def judged(logits, **settings):
    """A recorded network whose modalities have the confidence of these logits."""
    torch.manual_seed(0)
    names = [f"m{i}" for i in range(len(logits))]
    network = Recorded(names)
    heads = {n: Fixed(x) for n, x in zip(names, logits, strict=True)}
    settings = {"warmup_epochs": 0, "p_exe": 1.0, **settings}
    method = OPM(heads, cross_entropy, head_optimizer=lambda p: torch.optim.SGD(p, 0.0), **settings)
    return network, method.bind(network)


def features_of(network, inputs):
    network(inputs)
    return network.seen


def test_two_modalities_on_hand_computed_numbers():
    # q_base 0.5 and lambda 0.5: 0.5 (1 + 0.5 tanh(2 - 1)) for the one ahead, 0 for the other
    drops = drop_probabilities(torch.tensor([2.0, 0.5]), 0.5, 0.5)
    assert_close(drops, torch.tensor([0.5 * (1 + 0.5 * 0.7615942), 0.0]))
    edge = torch.tensor([1.0, float("nan"), 1e9])
    assert_close(drop_probabilities(edge, 0.4, 0.5), torch.tensor([0.0, 0.0, 0.6]))


def test_confidence_of_the_true_class_decides_who_is_ahead():
    # p = 3/6 against 1/4: ratios 2 and 1/2
    network, method = judged([math.log(3), 0.0])
    inputs, _ = late_batch(names="ab")
    method(network(inputs), torch.zeros(16, dtype=torch.int64))
    assert_close(method.readings["score"], torch.tensor([0.5, 0.25]))
    assert_close(method.readings["ratio"], torch.tensor([2.0, 0.5]))
    q = 0.5 * (1 + 0.5 * math.tanh(1))
    assert_close(method.readings["term"], torch.tensor([1 - q, 1.0]))


def test_whole_samples_of_the_modality_ahead_are_dropped_and_all_that_is_kept_is_enlarged():
    network, method = judged([math.log(3), 0.0])
    inputs, _ = late_batch(500, names="ab")
    whole = features_of(network, inputs)
    method(network(inputs), torch.zeros(500, dtype=torch.int64))
    q = 0.5 * (1 + 0.5 * math.tanh(1))
    theta = 6 * q / (6 + 6)  # both features have a width of 6
    assert_close(network.seen["m1"], whole["m1"] / (1 - theta))
    kept = network.seen["m0"] != 0
    assert torch.equal(kept.all(1), kept.any(1))
    assert kept[:, 0].float().mean().item() == pytest.approx(1 - q, abs=0.06)
    assert_close(network.seen["m0"], torch.where(kept, whole["m0"] / (1 - theta), 0.0))


def test_widths_weigh_the_share_that_is_dropped():
    # widths 2 and 6: theta = 2 q / 8
    network, _ = judged([math.log(3), 0.0])
    network.encoders["m0"][2] = nn.Linear(6, 2)
    network.fusion[0] = nn.Linear(8, 6)
    heads = {"m0": Fixed(math.log(3), width=2), "m1": Fixed(0.0)}
    settings = {"warmup_epochs": 0, "p_exe": 1.0}
    network.output_layer = nn.Linear(6, 4)
    inputs, target = late_batch(names="ab")[0], torch.zeros(16, dtype=torch.int64)
    whole = features_of(network, inputs)
    method = OPM(heads, cross_entropy, **settings).bind(network)
    method(network(inputs), target)
    q = 0.5 * (1 + 0.5 * math.tanh(1))
    assert_close(network.seen["m1"], whole["m1"] / (1 - 2 * q / 8))


def test_three_modalities_are_compared_with_the_mean_of_the_others():
    # p = 1/2, 1/4, 1/4
    network, method = judged([math.log(3), 0.0, 0.0])
    inputs, _ = late_batch(names="abc")
    method(network(inputs), torch.zeros(16, dtype=torch.int64))
    assert_close(method.readings["ratio"], torch.tensor([2.0, 2 / 3, 2 / 3]))


def test_the_loss_is_that_of_the_kept_features():
    network, method = judged([math.log(3), 0.0])
    inputs, _ = late_batch(names="ab")
    target = torch.zeros(16, dtype=torch.int64)
    prediction = network(inputs)
    loss = method(prediction, target)
    assert_close(loss, cross_entropy(network.decode(network.seen), target))
    assert not torch.equal(loss, cross_entropy(prediction, target))
    loss.backward()
    assert every(p.grad.abs().sum() > 0 for p in network.encoders.parameters())


def test_maps_are_dropped_as_a_whole():
    torch.manual_seed(0)
    network = Convolutional()
    heads = {name: ConvolutionalHead() for name in network.encoders}
    method = OPM(heads, cross_entropy, lambda p, y: -cross_entropy(p, y), warmup_epochs=0, p_exe=1)
    method.bind(network)
    images, target = torch.randn(40, 3, 8, 8), torch.randint(3, (40, 8, 8))
    prediction = network(images)
    given = []
    network.decoder.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    method(prediction, target)
    dropped = (
        (given[0] == 0).flatten(2).unflatten(1, (3, -1)).flatten(2)
    )  # (B, M, channels, places)
    assert torch.equal(dropped.all(2), dropped.any(2))
    ahead = method.readings["ratio"] > 1
    assert torch.equal(dropped.any(2).any(0), ahead)
    assert 0 < dropped[:, ahead].float().mean() < 1


def test_masks_of_dropped_sequences_are_false_and_types_stay():
    values, mask = torch.ones(3, 7, 20, dtype=torch.bfloat16), torch.ones(3, 7, dtype=torch.bool)
    kept = torch.tensor([True, False, True])
    thin, real = _times(torch.tensor(2.0), keep_samples((values, mask), kept))
    assert torch.equal(real.any(1), kept)
    assert thin.dtype == torch.bfloat16
    assert thin[:, 0, 0].tolist() == [2.0, 0.0, 2.0]


def test_draws_follow_seed_steps_and_micro_batches():
    inputs, _ = late_batch(names="ab")
    target = torch.zeros(16, dtype=torch.int64)

    def masks(seed, calls, step):
        network, method = judged([math.log(3), 0.0], seed=seed)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        found = []
        for _ in range(calls):
            method(network(inputs), target).backward()
            found.append((network.seen["m0"] == 0).tolist())
            if step:
                optimizer.step()
        return found

    stepped, gathered = masks(0, 3, True), masks(0, 2, False)
    assert stepped == masks(0, 3, True)
    assert stepped[0] == gathered[0]
    assert every(a != b for a, b in pairwise(stepped))
    assert gathered[0] != gathered[1] != stepped[1]
    assert masks(1, 1, True)[0] != stepped[0]


def test_no_other_generator_is_touched():
    network, method = make(p_exe=1.0)
    state = torch.get_rng_state()
    train(network, method, BATCHES[:2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_share_of_the_steps_drops_alike_within_a_window():
    network, method = make(p_exe=0.7)
    joint = []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    inputs, target = BATCHES[0]
    for _ in range(100):
        pair = []
        for _ in range(2):
            prediction = network(inputs)
            loss = method(prediction, target)
            pair.append(torch.equal(loss, cross_entropy(prediction, target)))
        assert pair[0] == pair[1]
        joint.append(pair[0])
        optimizer.step()
    assert 0.15 < sum(joint) / 100 < 0.45


def test_running_statistics_see_the_undropped_features_alone():
    torch.manual_seed(0)
    network = Late("ab")
    network.fusion = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 6))
    alone = copy.deepcopy(network)
    heads = {name: LinearHead() for name in "ab"}
    method = OPM(heads, cross_entropy, warmup_epochs=0, p_exe=1.0).bind(network)
    inputs, target = late_batch(names="ab")
    alone(inputs)
    loss = method(network(inputs), target)
    loss.backward()
    for key, value in alone.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


@pytest.mark.parametrize("setting", [{"q_base": 0.0}, {"p_exe": 0.0}, {"warmup_epochs": 1}])
def test_neutral_setting_is_joint_training_bit_for_bit(setting):
    network, method = make(**setting)
    joint = copy.deepcopy(network)
    train(network, method, BATCHES)
    train(joint, cross_entropy, BATCHES)
    assert equal(network, joint)


def test_warm_up_ends():
    network, method = make(p_exe=1.0, warmup_epochs=1)
    joint = copy.deepcopy(network)
    method.start_epoch(2)
    train(network, method, BATCHES)
    train(joint, cross_entropy, BATCHES)
    assert not equal(network, joint)


def test_a_single_modality_is_trained_as_joint():
    network, method = make(names=["text"], p_exe=1.0)
    joint = copy.deepcopy(network)
    batches = [late_batch(names=["text"], seed=seed) for seed in range(3)]
    train(network, method, batches)
    train(joint, cross_entropy, batches)
    assert equal(network, joint)


def test_regression_is_judged_by_the_score():
    torch.manual_seed(0)
    network = Late(classes=1)
    heads = {name: LinearHead(classes=1) for name in NAMES}
    mse = nn.functional.mse_loss
    method = OPM(heads, mse, lambda p, y: -mse(p, y), warmup_epochs=0).bind(network)
    inputs, target = BATCHES[0][0], torch.randn(16, 1)
    assert method(network(inputs), target).isfinite()
    assert (method.readings["score"] < 0).all()
    assert 0 < (method.readings["term"] < 1).sum() < 3
    method.score = None
    with pytest.raises(ValueError, match=r"or a `score`, but got a prediction of shape \(16, 1\)"):
        method(network(inputs), target)


def test_accumulation_scores_the_whole_window():
    found = []
    inputs, target = BATCHES[0]
    for sizes in ([16], [4, 12]):
        network, method = make(q_base=0.0)
        parts = zip(inputs.split(sizes), target.split(sizes), strict=True)
        train(network, method, list(parts), accumulation=len(sizes))
        found.append(method.readings["ratio"])
    assert_close(*found)


def test_a_window_without_a_step_is_forgotten():
    network, method = make()
    other, fresh = make()
    method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
    network.zero_grad()
    train(network, method, BATCHES[1:2])
    train(other, fresh, BATCHES[1:2])
    assert_close(method.readings["score"], fresh.readings["score"])
    start = make()[1].heads
    assert equal(method.heads, fresh.heads)
    assert not equal(method.heads, start)


def test_state_survives_a_checkpoint():
    network, method = make(warmup_epochs=1)
    method.start_epoch(2)
    train(network, method, BATCHES[:3])
    states = copy.deepcopy([network.state_dict(), method.state_dict()])
    whole = train(network, method, BATCHES[3:])
    other, resumed = make(seed=5, warmup_epochs=1)
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    rest = train(other, resumed, BATCHES[3:])
    assert every(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert states[1]["clock._extra_state"].items() >= {"epoch": 2, "steps": 3}.items()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    network, method = make(p_exe=1.0)
    with torch.autocast("cpu", dtype):
        loss = method(network(BATCHES[0][0]), BATCHES[0][1])
    loss.backward()
    assert {value.dtype for value in method.readings.values()} == {torch.float32}
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_a_step_never_waits_for_the_device():
    network, method = make(p_exe=1.0)
    train(network, method, BATCHES[:2])
    method.heads.optimizer = torch.optim.SGD(method.heads.parameters(), lr=0.1)
    with NoSynchronization():
        train(network, method, BATCHES[2:], accumulation=2)


def test_networks_without_decode_are_refused():
    network, heads = make_late()
    parts = {"encoders": network.encoders, "output_layer": network.output_layer}
    with pytest.raises(ValueError, match="Expected `decode`, with which OPM"):
        OPM(heads, cross_entropy, accuracy).bind(**parts)


@pytest.mark.parametrize(
    "settings",
    [{"q_base": -0.1}, {"q_base": 0.7, "lam": 0.5}, {"p_exe": 1.1}, {"warmup_epochs": -1}],
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        make(**settings)
