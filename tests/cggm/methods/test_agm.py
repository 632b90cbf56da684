"""AGM: Shapley responses, factors, masked passes, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cggm.methods._parts.shapley import shapley_weights
from cggm.methods.agm import AGM, agm_factors
from cggm.tensors import subsets_of
from tests.cggm.networks import Convolutional, Late, late_batch, make_late
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(6)]
cross_entropy = nn.functional.cross_entropy


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


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


class Product(nn.Module):
    """Each modality is a number; the prediction is 2a + 3b + ab, or ``(2a + 3b + ab, 0)``."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(1, 1, bias=False) for n in "ab"})
        for encoder in self.encoders.values():
            encoder.weight.data.fill_(1.0)
        self.output_layer = nn.Linear(3, classes or 1, bias=False)
        self.output_layer.weight.data.zero_()[0] = torch.tensor([2.0, 3.0, 1.0])
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        parts = inputs.unbind(1)
        encoded = zip(self.encoders.items(), parts, strict=True)
        return self.decode({n: e(x[:, None]) for (n, e), x in encoded})

    def decode(self, features) -> Tensor:
        a, b = features["a"], features["b"]
        output = self.output_layer(torch.cat([a, b, a * b], 1))
        return output if self.classes else output[:, 0]


class Normed(nn.Module):
    """A fusion with running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(5, 4) for n in ("x", "y")})
        self.fusion = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.output_layer = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        pairs = zip(self.encoders.items(), inputs.unbind(1), strict=True)
        return self.decode({n: e(x) for (n, e), x in pairs})

    def decode(self, features) -> Tensor:
        return self.output_layer(self.fusion(torch.cat(list(features.values()), 1)))


def test_shapley_weights_are_the_papers():
    # ICCV 2023: two modalities 1/2 [f(a,v) - f(0,v) + f(a,0)]
    assert shapley_weights(["a", "v"]).tolist() == [[0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]]
    # three: 1/3 alone and all minus the other pair, 1/6 pair minus the other alone
    third, sixth = 1 / 3, 1 / 6
    first = [third, -sixth, -sixth, sixth, sixth, -third, third]
    assert subsets_of("abc")[3:] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert_close(shapley_weights("abc")[0], torch.tensor(first))


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_responses_add_up_to_the_prediction(count):
    total = shapley_weights(list("abcdef")[:count]).sum(0)
    assert_close(total[:-1], torch.zeros(2**count - 2))
    assert_close(total[-1], torch.tensor(1.0))


def test_the_modality_ahead_is_held_back():
    # losses (low, high, high) before any history, tau = 1: r = exp(3/2 (7/6 - s)) = (e, 1/sqrt e)
    factors = agm_factors(torch.tensor([0.5, 1.5, 1.5]), torch.zeros(3), 0.4, 10.0)
    others = math.exp(0.4 * (1 - math.exp(-0.5)))
    assert_close(factors, torch.tensor([math.exp(0.4 * (1 - math.e)), others, others]))
    assert_close(factors, torch.tensor([0.51, 1.17, 1.17]), atol=0.01, rtol=0)


def test_two_modalities_compare_the_difference_of_losses_with_its_mean():
    # r = exp(s_other - s), tau likewise of the means (paper, M = 2)
    factors = agm_factors(torch.tensor([0.2, 1.0]), torch.tensor([0.6, 1.0]), 1.0, 10.0)
    first = math.exp(math.exp(0.4) - math.exp(0.8))
    second = math.exp(math.exp(-0.4) - math.exp(-0.8))
    assert first < 1 < second
    assert_close(factors, torch.tensor([first, second]))
    same = torch.tensor([0.2, 1.0])
    assert agm_factors(same, same, 1.0, 10.0).tolist() == [1, 1]


def test_the_exponent_is_capped_on_both_sides_and_finite():
    behind, ahead = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0])
    factors = agm_factors(behind, ahead, 0.5, 2.0)
    assert_close(factors, torch.tensor([math.e, 1 / math.e]))
    wild = agm_factors(torch.tensor([0.0, 1000.0]), torch.zeros(2), 0.5, 2.0)
    assert_close(wild[0], torch.tensor(1 / math.e))
    broken = agm_factors(torch.tensor([float("nan"), 1.0]), torch.zeros(2), 1.0, 10.0)
    assert broken.tolist() == [1, 1]


def test_loss_factors_and_gradients_on_hand_computed_numbers():
    network = Product(classes=2)
    method = AGM(cross_entropy, alpha=0.5).bind(network)
    inputs, target = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    loss = method(network(inputs), target)
    # f(a) = 2, f(b) = 6, f(a, b) = 10: responses (10 - 6 + 2)/2 = 3 and 7; loss log(1 + e^-phi)
    losses = [math.log1p(math.exp(-3)), math.log1p(math.exp(-7))]
    kappa = [
        math.exp(0.5 * (1 - math.exp(d))) for d in (losses[1] - losses[0], losses[0] - losses[1])
    ]
    assert_close(method.readings["score"], -torch.tensor(losses))
    assert_close(method.readings["term"], torch.tensor(kappa))
    assert kappa[1] < 1 < kappa[0]
    loss.backward()
    # d phi_a / da = 2 + b/2 = 3, d phi_b / da = b/2 = 1; d phi_a / db = 1/2, d phi_b / db = 3 + 1/2
    slope = -1 / (1 + math.exp(10))
    first, second = (network.encoders[n].weight.grad.item() for n in "ab")
    assert first == pytest.approx(slope * (kappa[0] * 3 + kappa[1] * 1), rel=1e-3)
    assert second == pytest.approx(2 * slope * (kappa[0] * 0.5 + kappa[1] * 3.5), rel=1e-3)


def test_numbers_are_judged_by_each_modality_alone():
    network = Product()
    method = AGM(nn.functional.mse_loss).bind(network)
    method(network(torch.tensor([[1.0, 2.0]])), torch.tensor([9.0]))
    # f(a) = 2 and f(b) = 6, not the responses 3 and 7
    assert method.readings["score"].tolist() == [-49, -9]


def test_the_value_is_the_joint_loss_to_the_last_bit():
    network, _ = make_late()
    method = AGM(cross_entropy, alpha=1.5).bind(network)
    for inputs, target in BATCHES[:3]:
        prediction = network(inputs)
        assert torch.equal(method(prediction, target), cross_entropy(prediction, target))


def test_equal_factors_are_the_joint_gradient():
    network, _ = make_late()
    joint = copy.deepcopy(network)
    method = AGM(cross_entropy, cap=0.0).bind(network)
    inputs, target = BATCHES[0]
    method(network(inputs), target).backward()
    cross_entropy(joint(inputs), target).backward()
    assert method.readings["term"].tolist() == [1, 1, 1]
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_running_means_move_once_per_step_and_beta_forgets():
    for beta, weight in ((None, 1 / 3), (0.4, 0.6)):
        network, _ = make_late()
        method = AGM(cross_entropy, beta=beta).bind(network)
        losses = []
        for inputs, target in BATCHES[:3]:
            method(network(inputs), target)
            losses.append(-method.readings["score"])
            before = method.mean.clone()
            torch.optim.SGD(network.parameters(), lr=0.0).step()
        assert_close(method.mean, before + weight * (losses[2] - before))
        assert method.steps == 3
        if beta is None:
            assert_close(method.mean, torch.stack(losses).mean(0))


def test_a_loss_that_is_not_finite_leaves_the_mean_alone():
    network = Product(classes=2)
    method = AGM(cross_entropy).bind(network)
    for value in (1.0, float("nan")):
        method(network(torch.tensor([[value, 2.0]])), torch.tensor([0]))
        torch.optim.SGD(network.parameters(), lr=0.0).step()
    assert method.mean.isfinite().all()
    assert method.steps == 1


def test_masked_passes_leave_no_trace_on_a_network_in_training():
    torch.manual_seed(0)
    network = Normed()
    inputs, target = late_batch(names="xy")
    alone = copy.deepcopy(network)
    alone(inputs)
    method = AGM(cross_entropy).bind(network)
    prediction = network(inputs)
    state = torch.get_rng_state()
    method(prediction, target).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert every(module.training for module in network.modules())
    for key, value in alone.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_frozen_modules_stay_frozen():
    network = Normed()
    network.fusion[0].eval()
    method = AGM(cross_entropy).bind(network)
    inputs, target = late_batch(names="xy")
    method(network(inputs), target).backward()
    assert [network.fusion[0].training, network.fusion[1].training] == [False, True]


def test_another_pass_in_training_keeps_running_statistics():
    network = Normed()
    method = AGM(cross_entropy, alpha=0.0).bind(network)
    inputs, _ = late_batch(names="xy")
    network(inputs)
    before = copy.deepcopy(network.state_dict())
    features = {n: torch.randn(16, 4, requires_grad=True) for n in "xy"}
    method.binding.decode(features).sum().backward()
    assert features["x"].grad is not None
    assert every(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    network.fusion.eval()
    frozen = method.binding.decode(features)
    fixed = method.binding.decode(features, training=False)
    assert_close(fixed, frozen)
    assert_close(fixed, network.eval().decode(features))


@pytest.mark.parametrize("setting", [{"alpha": 0.0}, {"first_epoch": 2}])
def test_neutral_setting_is_joint_training_bit_for_bit(setting):
    network, _ = make_late()
    joint = copy.deepcopy(network)
    train(network, AGM(cross_entropy, **setting).bind(network), BATCHES)
    train(joint, cross_entropy, BATCHES)
    assert equal(network, joint)


def test_epochs_of_modulation_end():
    network, _ = make_late()
    method = AGM(cross_entropy, first_epoch=2, last_epoch=2).bind(network)
    found = []
    for epoch in (1, 2, 3):
        method.start_epoch(epoch)
        train(network, method, BATCHES[:2])
        found.append(int(method.steps))
    assert found == [0, 2, 2]


def test_a_single_modality_is_trained_as_joint():
    network, _ = make_late(["text"])
    joint = copy.deepcopy(network)
    batches = [late_batch(names=["text"], seed=seed) for seed in range(3)]
    train(network, AGM(cross_entropy).bind(network), batches)
    train(joint, cross_entropy, batches)
    assert equal(network, joint)


def test_default_setting_departs_from_joint_training():
    network, _ = make_late()
    joint = copy.deepcopy(network)
    train(network, AGM(cross_entropy).bind(network), BATCHES)
    train(joint, cross_entropy, BATCHES)
    assert not equal(network, joint)


@pytest.mark.parametrize("dims", [2, 3])
def test_dense_classes_with_nested_features(dims):
    torch.manual_seed(0)
    network = Convolutional(dims=dims)
    method = AGM(cross_entropy).bind(network)
    images, target = torch.randn(2, 3, *[8] * dims), torch.randint(3, (2, *[8] * dims))
    loss = method(network(images), target)
    loss.backward()
    assert loss.isfinite()
    assert method.readings["term"].shape == (3,)
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_permuted_modalities_permute_the_factors():
    network, _ = make_late()
    turned = copy.deepcopy(network)
    order = [2, 0, 1]
    names = list(network.encoders)
    turned.encoders = nn.ModuleDict({names[i]: turned.encoders[names[i]] for i in order})
    weight = turned.fusion[0].weight.data
    turned.fusion[0].weight.data = weight.unflatten(1, (3, -1))[:, order].flatten(1)
    inputs, target = BATCHES[0]
    methods = [AGM(cross_entropy).bind(n) for n in (network, turned)]
    methods[0](network(inputs), target)
    methods[1](turned(inputs[:, order]), target)
    assert_close(methods[0].readings["term"][order], methods[1].readings["term"])


def test_accumulation_gathers_the_losses_of_the_whole_window():
    means = []
    inputs, target = BATCHES[0]
    for sizes in ([16], [4, 12]):
        network, _ = make_late()
        method = AGM(cross_entropy).bind(network)
        parts = list(zip(inputs.split(sizes), target.split(sizes), strict=True))
        train(network, method, parts, accumulation=len(sizes))
        means.append(method.mean)
        assert method.steps == 1
    assert_close(*means)


def test_a_window_without_a_step_is_forgotten():
    network, _ = make_late()
    fresh = copy.deepcopy(network)
    method = AGM(cross_entropy).bind(network)
    method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
    network.zero_grad()
    train(network, method, BATCHES[1:2])
    other = AGM(cross_entropy).bind(fresh)
    train(fresh, other, BATCHES[1:2])
    assert_close(method.mean, other.mean)


def test_state_survives_a_checkpoint():
    network, _ = make_late()
    method = AGM(cross_entropy, last_epoch=2).bind(network)
    method.start_epoch(2)
    train(network, method, BATCHES[:3])
    states = copy.deepcopy([network.state_dict(), method.state_dict()])
    whole = train(network, method, BATCHES[3:])
    other, _ = make_late(seed=5)
    resumed = AGM(cross_entropy, last_epoch=2).bind(other)
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    rest = train(other, resumed, BATCHES[3:])
    assert every(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert resumed.clock.epoch == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_losses_and_factors_in_full_precision(dtype):
    network, _ = make_late()
    method = AGM(cross_entropy).bind(network)
    with torch.autocast("cpu", dtype):
        loss = method(network(BATCHES[0][0]), BATCHES[0][1])
    loss.backward()
    assert {value.dtype for value in method.readings.values()} == {torch.float32}
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_a_step_never_waits_for_the_device():
    network, _ = make_late()
    method = AGM(cross_entropy, beta=0.9).bind(network)
    with NoSynchronization():
        train(network, method, BATCHES[:4], accumulation=2)


def test_networks_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="Expected `decode`, with which AGM"):
        AGM(cross_entropy).bind(encoders=make_late()[0].encoders, output_layer=nn.Linear(6, 4))
    network, _ = make_late([f"m{i}" for i in range(7)])
    with pytest.raises(ValueError, match=r"at most 6 modalities.*got 7, which is 128 passes"):
        AGM(cross_entropy).bind(network)
    assert none(m._forward_hooks for m in network.modules())
    network, _ = make_late()
    with pytest.raises(ValueError, match=r"a module or a method of one.*got function"):
        AGM(cross_entropy).bind(network, decode=lambda features: network.decode(features))


@pytest.mark.parametrize(
    "settings", [{"alpha": -1.0}, {"cap": -1.0}, {"beta": 1.0}, {"first_epoch": 0}]
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        AGM(cross_entropy, **settings)


def test_float64_as_the_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        network = Late()
        method = AGM(cross_entropy).bind(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for seed in range(2):
            inputs, target = late_batch(seed=seed)
            method(network(inputs.double()), target).backward()
            optimizer.step()
        assert method.readings["term"].dtype == method.mean.dtype == torch.float32
        assert (method.mean > 0).all()
    finally:
        torch.set_default_dtype(torch.float32)
