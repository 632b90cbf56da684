"""Greedy: speeds worked out by hand, who is left out and for how long, scales, ranks, refusals."""

import copy
import io
from math import log10

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from cggm.methods.greedy import Greedy, GreedyFeatures
from cggm.scores import Window
from tests.cggm.networks import NAMES, Convolutional, encode, late_batch, make_late, make_late_fused
from tests.cggm.networks import train as loop
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every
from tests.ranks import on_two_ranks

BATCHES = [late_batch(seed=seed) for seed in range(8)]
Q = 5  # published default
cross_entropy = nn.functional.cross_entropy


class Scalars(nn.Module):
    """Modality m has the feature ``w_m x_m``; the prediction is the features' sum."""

    def __init__(self, weights):
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(1, 1, bias=False) for n in weights})
        self.output_layer = nn.Linear(len(weights), 1, bias=False)
        nn.init.ones_(self.output_layer.weight)
        for name, weight in weights.items():
            nn.init.constant_(self.encoders[name].weight, weight)

    def pairs(self, inputs):
        return zip(self.encoders.values(), inputs.unbind(1), strict=True)

    def forward(self, inputs):
        return self.output_layer(torch.cat([e(x) for e, x in self.pairs(inputs)], 1))


class Units(Scalars):
    """The published form: each branch is multiplied by what a unit makes of the other branch."""

    def __init__(self, weights):
        super().__init__(weights)
        self.units = nn.ModuleDict({n: nn.Linear(1, 1, bias=False) for n in weights})
        for unit in self.units.values():
            nn.init.ones_(unit.weight)

    def forward(self, inputs):
        first, second = (e(x) for e, x in self.pairs(inputs))
        units = list(self.units.values())
        return self.output_layer(torch.cat([first * units[0](second), second * units[1](first)], 1))


def mean_of(prediction, target):
    return prediction.mean()


def make(network, loss=mean_of, **settings):
    settings.setdefault("first_epoch", 1)
    kind = Greedy if "bypass" in settings else GreedyFeatures
    return kind(loss, **settings).bind(network)


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def train(network, greedy, batches, lr=0.1):
    return torch.stack(loop(network, sgd(network, lr), greedy, batches))


def ones(count=2, size=4, factor=1.0):
    return torch.full((size, count, 1), factor), None


def means(greedy):
    return greedy.means.get_extra_state()


def test_speeds_of_gains_on_hand_computed_numbers():
    # features w; gradients 1 of w and w of its gain: mu main 1 / w^2, mu bypass w^2 / 1, so that
    # s = log10(w^4) (equation of the paper): 4 for w = 10, 0 for w = 1
    network = Scalars({"slow": 1.0, "fast": 10.0})
    greedy = make(network)
    terms = train(network, greedy, [ones()] * 8, lr=0.0)
    assert_close(greedy.sums, torch.tensor([[1.0, 100.0], [1.0, 0.01]]) * 2)
    assert_close(greedy.readings["speed"], torch.tensor([0.0, 4.0]))
    # measured in step 1, left out for Q = 5 steps, measured again in step 7, left out again
    assert terms[:, 0].tolist() == [1.0] * 8
    assert terms[:, 1].tolist() == [1.0, *[0.0] * Q, 1.0, 0.0]


def test_published_units_on_hand_computed_numbers():
    # prediction e_a w_a w_b + e_b w_a w_b with e = 1, w_a = 2, w_b = 1: mu of a unit is
    # (w_a w_b)^2 = 4, mu main (2 w_b / w_a)^2 = 1 for a and (2 w_a / w_b)^2 = 16 for b
    network = Units({"a": 2.0, "b": 1.0})
    greedy = make(network, bypass=network.units, steps=2)
    terms = train(network, greedy, [ones()], lr=0.0)
    assert_close(greedy.sums, torch.tensor([[4.0, 4.0], [1.0, 16.0]]))
    # d_speed = 1.2 > 0.01: modality 0 uses the mean, 2 w_b x_b -> the unit's mean, 1
    inputs, target = ones(factor=3.0)
    prediction = network(inputs)
    assert_close(prediction, torch.full((4, 1), 6.0 * 1.0 + 6.0 * 3.0))
    assert_close(greedy.means.mean("a/0"), torch.ones(1))
    network.zero_grad()
    greedy(prediction, target).backward()
    assert_close(greedy.readings["speed"], torch.tensor([log10(4), log10(4 / 16)]))
    assert terms.tolist() == [[1.0, 1.0]]
    assert greedy.readings["term"].tolist() == [0.0, 1.0]
    # no gradient reaches b through a's unit: only x_b w_a x_a
    assert network.units["a"].weight.grad.tolist() == [[0.0]]
    assert_close(network.encoders["b"].weight.grad, torch.tensor([[18.0]]))


def test_left_out_modality_is_its_mean_and_its_encoder_gets_zeros():
    network, _ = make_late()
    greedy = make(network, cross_entropy, steps=3)
    train(network, greedy, BATCHES[:1], lr=0.0)
    out = NAMES[int(greedy.target)]
    inputs, target = BATCHES[1]
    mean = network.encoders[out](BATCHES[0][0][:, NAMES.index(out)]).mean(0)
    features = encode(network, inputs)
    expected = features[out].new_tensor(mean.tolist()).expand(16, -1)
    assert_close(features[out], expected)
    network.zero_grad()
    greedy(network.decode(features), target).backward()
    for name, encoder in network.encoders.items():
        gradients = [p.grad.abs().sum() for p in encoder.parameters()]
        assert every((g == 0) == (name == out) for g in gradients)


def test_means_are_of_all_training_samples_of_real_steps():
    network, _ = make_late()
    greedy = make(network, cross_entropy, epsilon=None)
    seen = []
    for inputs, target in (late_batch(8), late_batch(24, seed=1)):
        seen.append(inputs[:, 1])
        network.train()
        train(network, greedy, [(inputs, target)], lr=0.0)
        network.eval()
        greedy(network(inputs * 100), target)
    expected = network.encoders["audio"](torch.cat(seen)).mean(0)
    assert_close(greedy.means.mean("audio/0"), expected)
    real = torch.tensor([[True, False], [True, True]])
    steps = torch.tensor([[[1.0], [50.0]], [[2.0], [6.0]]])
    window = Window()
    greedy.means.add("steps", {"x": steps, "real": real}, greedy.binding, window)
    assert window["channels/steps/0"].tolist() == [9.0, 3.0]


def test_maps_have_a_mean_per_channel_and_tensor():
    torch.manual_seed(0)
    network = Convolutional()
    greedy = make(network, lambda p, t: p.square().mean(), epsilon=0.0, steps=1)
    inputs = torch.randn(2, 3, 8, 8)
    low = network.eval().encoders["audio"](inputs[:, 1:2])["low"].mean((0, 2, 3))
    train(network.train(), greedy, [(inputs, None)], lr=0.0)
    assert_close(greedy.means.mean("audio/0"), low)
    assert len(means(greedy)) == 6
    assert greedy.left == 1
    out = network.encoders[NAMES[int(greedy.target)]](inputs[:, :1])
    assert out["low"].flatten(2).std(2).max() < 1e-6
    assert out["rest"][1] == "not a tensor"


@pytest.mark.parametrize("divide", [True, False])
def test_accumulation_equals_one_big_batch(divide):
    whole_net, _ = make_late()
    halves_net = copy.deepcopy(whole_net)
    whole, halves = (
        make(whole_net, cross_entropy, steps=1),
        make(halves_net, cross_entropy, steps=1),
    )
    optimizer = sgd(halves_net)
    for inputs, target in BATCHES[:4]:
        train(whole_net, whole, [(inputs, target)])
        optimizer.zero_grad()
        for x, y in zip(inputs.chunk(2), target.chunk(2), strict=True):
            loss = halves(halves_net(x), y)
            (loss / 2 if divide else loss).backward()
        if not divide:
            for p in halves_net.parameters():
                p.grad /= 2
        optimizer.step()
    assert_close(halves.sums, whole.sums, rtol=1e-4, atol=1e-7)
    assert (halves.left, halves.target) == (whole.left, whole.target)
    for place, mean in means(whole).items():
        assert_close(means(halves)[place], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_leaves_no_trace(fused):
    plain_net, _ = make_late()
    scaled_net = copy.deepcopy(plain_net)
    plain, scaled = (
        make(plain_net, cross_entropy, epsilon=None),
        make(scaled_net, cross_entropy, epsilon=None),
    )
    optimizer = torch.optim.SGD(scaled_net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for inputs, target in BATCHES[:3]:
        train(plain_net, plain, [(inputs, target)])
        optimizer.zero_grad()
        scaler.scale(scaled(scaled_net(inputs), target)).backward()
        scaler.step(optimizer)
        scaler.update(scaler.get_scale() * 2)
    assert_close(scaled.sums, plain.sums, rtol=1e-4, atol=1e-7)


def test_a_window_without_a_step_is_forgotten():
    network, _ = make_late()
    other = copy.deepcopy(network)
    greedy, clean = (
        make(network, cross_entropy, epsilon=None),
        make(other, cross_entropy, epsilon=None),
    )
    greedy(network(BATCHES[0][0] * 50), BATCHES[0][1]).backward()
    train(network, greedy, BATCHES[1:2])
    train(other, clean, BATCHES[1:2])
    assert_close(greedy.sums, clean.sums)
    assert_close(means(greedy), means(clean))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda n: nn.init.zeros_(n.encoders["b"].weight),
        lambda n: nn.init.zeros_(n.output_layer.weight),
        lambda n: n.output_layer.weight.data[0, 1].zero_(),
    ],
)
def test_zero_norms_and_gradients_decide_nothing(break_it):
    network = Scalars({"a": 10.0, "b": 1.0})
    break_it(network)
    greedy = make(network)
    terms = train(network, greedy, [ones()] * 3, lr=0.0)
    assert terms.tolist() == [[1.0, 1.0]] * 3
    assert greedy.readings["speed"].isfinite().all()
    assert greedy.sums.isfinite().all()


def test_a_gradient_that_is_not_finite_is_not_measured():
    network = Scalars({"a": 10.0, "b": 1.0})
    greedy = make(network, epsilon=None)
    train(network, greedy, [ones()], lr=0.0)
    before = greedy.sums.clone()
    train(network, greedy, [(torch.full((4, 2, 1), torch.inf), None)], lr=0.0)
    assert torch.equal(greedy.sums, before)


def test_re_balancing_waits_for_its_epoch_and_sums_do_not():
    network = Scalars({"a": 10.0, "b": 1.0})
    greedy = make(network, first_epoch=2)
    assert train(network, greedy, [ones()] * 3, lr=0.0).all()
    greedy.start_epoch(2)
    assert train(network, greedy, [ones()] * 2, lr=0.0).tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert_close(greedy.sums[0], torch.tensor([400.0, 4.0]))


def test_a_single_modality_is_never_left_out():
    network = Scalars({"a": 10.0})
    assert train(network, make(network, epsilon=0.0), [ones(1)] * 4).all()


@pytest.mark.parametrize("make_network", [lambda: make_late()[0], make_late_fused])
@pytest.mark.parametrize("epsilon", [None, float("inf")])
def test_neutral_setting_is_joint_training(make_network, epsilon):
    network, joint = make_network(), make_network()
    train(network, make(network, cross_entropy, epsilon=epsilon), BATCHES)
    optimizer = sgd(joint)
    for inputs, target in BATCHES:
        optimizer.zero_grad()
        cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_resume_goes_on_in_the_midst_of_a_re_balancing():
    network, _ = make_late()
    greedy = make(network, cross_entropy)
    train(network, greedy, BATCHES[:3])
    assert greedy.left > 0
    file = io.BytesIO()
    torch.save([network.state_dict(), greedy.state_dict()], file)
    whole = train(network, greedy, BATCHES[3:])
    file.seek(0)
    again, _ = make_late(seed=3)
    restored = make(again, cross_entropy)
    for part, state in zip((again, restored), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert torch.equal(train(again, restored, BATCHES[3:]), whole)
    for p, q in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_recomputed_regions_measure_the_same():
    ends = []
    for recomputed in (False, True):
        network, _ = make_late()
        greedy = make(network, cross_entropy, steps=1)
        forward = network.forward
        if recomputed:
            network.forward = lambda x, f=forward: checkpoint(f, x, use_reentrant=False)
        train(network, greedy, BATCHES)
        ends.append([greedy.sums, *(p.detach() for p in network.parameters())])
    assert_close(*ends, rtol=0, atol=0)


def test_half_precision_features_keep_their_type():
    network, _ = make_late()
    greedy = make(network, cross_entropy, epsilon=0.0)
    for inputs, target in BATCHES[:3]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            prediction = network(inputs)
            assert network.encoders["audio"](inputs[:, 1]).dtype == torch.bfloat16
        greedy(prediction.float(), target).backward()
        sgd(network).step()
    assert (greedy.sums > 0).all()


def test_a_step_never_waits_for_the_device():
    network, _ = make_late()
    greedy = make(network, cross_entropy, steps=1)
    train(network, greedy, BATCHES[:1])
    optimizer = sgd(network)
    with NoSynchronization():
        for inputs, target in BATCHES[1:4]:
            optimizer.zero_grad(set_to_none=False)
            for _ in range(2):
                greedy(network(inputs), target).backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -1.0}, "`epsilon` not negative.* got -1.0, 5 and 1"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"steps": 0}, "got 0.01, 0 and 1"),
        ({"first_epoch": 0}, "got 0.01, 5 and 0"),
        ({"bypass": {"a": nn.Linear(1, 1)}}, r"`bypass` for the modalities \['a', 'b'\]"),
        ({"bypass": {"a": nn.Linear(1, 1), "b": nn.ReLU()}}, "trainable parameters of their own"),
        ({"bypass": dict.fromkeys("ab", nn.Linear(1, 1))}, "shares"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(Scalars({"a": 1.0, "b": 1.0}), **settings)


def test_what_cannot_be_averaged_is_refused():
    network = Units({"a": 1.0, "b": 1.0})
    idle = {"a": network.units["a"], "b": nn.Linear(1, 1)}
    greedy = make(network, bypass=idle)
    with pytest.raises(ValueError, match="tensors of floats with channels from 'b'"):
        greedy(network(ones()[0]), None)


def test_gradients_are_measured_within_a_closure():
    states = []
    for closed in (False, True):
        network = Scalars({"a": 1.0, "b": 1.0})
        greedy, optimizer = make(network), torch.optim.SGD(network.parameters(), 0.1)

        def closure(network=network, greedy=greedy, optimizer=optimizer):
            optimizer.zero_grad()
            loss = greedy(network(ones()[0]), None)
            loss.backward()
            return loss

        optimizer.step(closure) if closed else (closure(), optimizer.step())
        states.append({k: v for k, v in greedy.state_dict().items() if isinstance(v, torch.Tensor)})
    assert states[0]
    assert every(torch.equal(states[0][name], states[1][name]) for name in states[0])


def states_of_rank(rank):
    """What network and method end with on this rank's half of each batch."""
    network, _ = make_late()
    wrapped = DistributedDataParallel(network)
    greedy, optimizer = make(wrapped, cross_entropy, steps=1), sgd(network)
    for batch in BATCHES:
        inputs, target = (part.chunk(2)[rank] for part in batch)
        optimizer.zero_grad()
        greedy(wrapped(inputs), target).backward()
        optimizer.step()
    return [network.state_dict(), greedy.state_dict()]


def test_two_ranks_on_halves_equal_one_process_on_the_whole(tmp_path):
    first, second = on_two_ranks(states_of_rank, tmp_path)
    assert_close(first, second, rtol=0, atol=0)
    network, _ = make_late()
    greedy = make(network, cross_entropy, steps=1)
    train(network, greedy, BATCHES)
    assert_close(first[0], network.state_dict(), rtol=1e-4, atol=1e-6)
    for key, value in greedy.state_dict().items():
        assert_close(first[1][key], value, rtol=1e-4, atol=1e-5)
