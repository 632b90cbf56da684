"""Guided heads: shares, weights and draws by hand, and a whole training written anew."""

import copy
from math import exp, log
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from cggm.methods import _parts, guided
from cggm.methods.guided import GuidedHeads, guided_weights
from tests.cggm.networks import (
    NAMES,
    accuracy,
    late_batch,
    make_late,
    make_late_fused,
)
from tests.quantifiers import every

BATCHES = [late_batch(seed=seed) for seed in range(6)]
cross_entropy = F.cross_entropy


class Same(nn.Module):
    """A layer of ones on the diagonal: what it returns is what it gets."""

    def __init__(self, width=2):
        super().__init__()
        self.output_layer = nn.Linear(width, width, bias=False)
        self.output_layer.weight.data = torch.eye(width)

    def forward(self, x):
        return self.output_layer(x)


class Sum(nn.Module):
    """Two modalities whose features are logits, added."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": Same(), "b": Same()})
        self.output_layer = Same().output_layer

    def forward(self, inputs):
        return self.decode({n: e(inputs[n]) for n, e in self.encoders.items()})

    def decode(self, features):
        return self.output_layer(features["a"] + features["b"])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def make(heads, task_loss=cross_entropy, score=accuracy, switch=None, **settings):
    return GuidedHeads(heads, task_loss, score, switch=switch, head_optimizer=sgd, **settings)


def of_sum(**settings):
    network = Sum()
    return network, make({"a": Same(), "b": Same()}, **settings).bind(network)


def logits(*probabilities):
    """Logits whose first class has these probabilities."""
    return torch.tensor([[log(p), log(1 - p)] for p in probabilities])


FIRST = torch.zeros(3, dtype=torch.long)
HAND = {"a": logits(3 / 4, 1 / 2, 1 / 4), "b": logits(1 / 4, 1 / 2, 3 / 4)}


def test_shares_on_hand_computed_numbers():
    network, method = of_sum(nu=0.0, gate=None)
    loss = method(network(HAND), FIRST)
    # p of a is 3/4, 1/2, 1/4 of a mean of 1/2: r = 1.5, 1, 0.5, and the reverse for b
    of_each = (1.5 * log(4 / 3) + log(2) + 0.5 * log(4)) / 3
    # sums of logits: log 3 - log 3 = 0, so that all fused probabilities are 1/2
    assert loss.item() == pytest.approx(log(2) + 2 * of_each, abs=1e-6)
    found = method.readings
    assert_close(found["share"], torch.tensor([0.5, 0.5]))
    # in the second sample they tie, and the first one counts
    assert_close(found["lead"], torch.tensor([2 / 3, 1 / 3]))
    assert_close(found["spread"], torch.full((2,), (1 / 6) ** 0.5))
    assert found["weight"].tolist() == found["gate"].tolist() == [1.0, 1.0]
    loss.backward()
    # a's first sample: 1.5 / 3 of its head's loss, whose gradient is (p - 1, 1 - p), and 1 / 3 of
    # the fused one's, at 1/2; heads are constants, so that theirs goes to the encoder alone
    expected = 0.5 * torch.tensor([-1 / 4, 1 / 4]) + torch.tensor([-1 / 2, 1 / 2]) / 3
    rest = torch.tensor([[-1 / 2, 1 / 2], [-3 / 4, 3 / 4]]) * torch.tensor([[1.0], [0.5]]) / 3
    rest = torch.cat([expected[None], rest + torch.tensor([-1 / 2, 1 / 2]) / 3])
    assert_close(network.encoders["a"].output_layer.weight.grad, rest.T @ HAND["a"])
    assert method.heads["a"].output_layer.weight.grad is None


def test_a_share_is_at_most_the_number_of_modalities_and_a_closed_gate_is_neutral():
    seen = torch.ones(8, 2, dtype=torch.bool)
    losses = torch.zeros(8, 2)
    losses[1:, 0] = 9.0  # a explains the first sample alone: 1/2 of a mean of 1/16 is 8
    _, method = of_sum(nu=0.0)
    method.window.gather(tells=torch.ones(()))
    method._count(losses, seen)
    shares = method._shares(losses, seen, torch.tensor([1.0, 0.25]), FIRST)
    assert shares[0, 0] == 2.0
    b = torch.full((8,), 1 / (1 + torch.exp(torch.tensor(-9.0))))
    b[0] = 0.5
    assert_close(shares[:, 1], 1 + 0.25 * (b / b.mean() - 1))


@pytest.mark.parametrize(
    ("gates", "trust", "expected"),
    [
        # 2 * (1 - 1/2): who is level counts one
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
        # 2 * (1 - 0.8) = 0.4 and 1.6: (1 + B) / 2
        ([1.0, 0.25], [1.0, 0.5], [0.7, 1.3]),
        # never a signal, trust has run down to 0.1: 3 * 0.1 * (1 + 2) / 2
        ([1.0, 0.0], [1.0, 0.1], [0.5, 0.45]),
        ([0.0, 0.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0], [1.0], [1.0]),
    ],
)
def test_weights_on_hand_computed_numbers(gates, trust, expected):
    assert_close(guided_weights(torch.tensor(gates), torch.tensor(trust)), torch.tensor(expected))


def test_trust_rises_at_once_and_falls_by_patience():
    guidance = _parts.Guidance(2, 0.9)
    window = {"seen": torch.ones(2)}
    guidance.commit(window, torch.tensor([1.0, 0.0]))
    assert_close(guidance.trust, torch.tensor([1.0, 0.9]))
    guidance.commit(window, torch.tensor([1.0, 0.5]))
    assert_close(guidance.trust, torch.tensor([1.0, 0.86]))
    guidance.commit({"seen": torch.tensor([1.0, 0.0])}, torch.tensor([0.5, 1.0]))
    assert_close(guidance.trust, torch.tensor([0.95, 0.86]))


class Anew:
    """The method written from its rule once more, for three modalities, classes and plain SGD."""

    def __init__(self, network, heads, temperature=None):
        self.network, self.heads = copy.deepcopy(network), copy.deepcopy(heads)
        self.score, self.chance = torch.zeros(3), torch.zeros(3)
        self.trust, self.steps, self.temperature = torch.ones(3), 0, temperature
        self.correlation, self.kappas = torch.zeros(()), []

    def step(self, inputs, target):
        names = list(self.network.encoders)
        h = [self.network.encoders[n](inputs[:, i]) for i, n in enumerate(names)]
        with torch.no_grad():
            said = [self.heads[n](x).argmax(1) for n, x in zip(names, h, strict=True)]
            now = torch.tensor([(s == target).float().mean() for s in said])
            by_chance = torch.tensor([(s == target.roll(1)).float().mean() for s in said])
        self.score = 0.9 * self.score + 0.1 * now
        self.chance = 0.9 * self.chance + 0.1 * by_chance
        signal = (self.score - self.chance).clamp_min(0)
        g = signal / signal.max() if signal.max() > 0 else torch.zeros(3)
        self.trust = torch.maximum(g, 0.99 * self.trust + 0.01 * g)
        own = g / g.sum() if g.sum() > 0 else torch.full((3,), 1 / 3)
        w = (3 * self.trust).clamp_max(1) * (1 + 1.5 * (1 - own)) / 2

        rows = [self.heads[n](x) for n, x in zip(names, h, strict=True)]
        loss_of = torch.stack([cross_entropy(z, target, reduction="none") for z in rows], 1)
        fixed = loss_of.detach()
        heat = 1.0 if self.temperature is None else 3 * fixed.mean()
        p = torch.exp(-fixed / heat)
        p = p / p.sum(1, keepdim=True)
        pairs = torch.corrcoef(fixed.T)
        now = (pairs[0, 1] + pairs[0, 2] + pairs[1, 2]) / 3
        self.correlation = 0.99 * self.correlation + 0.01 * now
        rho = self.correlation / (1 - 0.99 ** (self.steps + 1))
        kappa = ((-rho - 0.1) / 0.2).clamp(0, 1)
        self.kappas.append(float(kappa))
        r = 1 + kappa * g * ((p / p.mean(0)).clamp_max(3) - 1)

        key = Random(f"kept 7 {self.steps} 1 0").getrandbits(63)
        drawn = torch.rand(len(target), 1, generator=torch.Generator().manual_seed(key))
        odds = (w * r).cumsum(1)
        m = (odds / odds[:, -1:] <= drawn).sum(1)
        left = {n: x * (m == i)[:, None] for i, (n, x) in enumerate(zip(names, h, strict=True))}
        fused = self.network.decode(dict(zip(names, h, strict=True)))
        loss = cross_entropy(fused, target)
        loss = loss + (w * (r * loss_of).mean(0)).sum()
        loss = loss + 0.25 * w.sum() * cross_entropy(self.network.decode(left), target)

        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        learn = [
            cross_entropy(self.heads[n](x.detach()), target) for n, x in zip(names, h, strict=True)
        ]
        own_parameters = [p for n in names for p in self.heads[n].parameters()]
        theirs = torch.autograd.grad(sum(learn), own_parameters)
        with torch.no_grad():
            for p, g in zip([*parameters, *own_parameters], [*gradients, *theirs], strict=True):
                p -= 0.1 * g
        self.steps += 1
        return loss.detach()


def opposed(seed):
    """A batch in which text tells the class of the first half, and audio that of the second."""
    generator = torch.Generator().manual_seed(seed)
    target, *others = torch.randint(4, (4, 16), generator=generator)
    first = torch.arange(16) < 8
    shown = [
        torch.where(first, target, others[0]),
        torch.where(first, others[1], target),
        others[2],
    ]
    return torch.stack([4 * F.one_hot(x, 5).float() for x in shown], 1), target


@pytest.mark.parametrize("temperature", ["auto", "mean"])
def test_training_equals_the_rule_written_anew(temperature):
    network, heads = make_late()
    anew = Anew(network, heads, None if temperature == "auto" else temperature)
    method = make(heads, temperature=temperature, seed=7, switch="auto").bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for inputs, target in map(opposed, range(40)):
        optimizer.zero_grad()
        loss = method(network(inputs), target)
        loss.backward()
        optimizer.step()
        assert_close(loss.detach(), anew.step(inputs, target), rtol=1e-4, atol=1e-5)
    assert_close(method.guidance.trust, anew.trust)
    assert max(anew.kappas) > 0
    for p, q in zip(network.parameters(), anew.network.parameters(), strict=True):
        assert_close(p, q, rtol=1e-3, atol=1e-5)
    for name in NAMES:
        for p, q in zip(
            method.heads[name].parameters(), anew.heads[name].parameters(), strict=True
        ):
            assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_the_extra_pass_equals_its_expectation_over_draws():
    network, heads = make_late()
    inputs, target = BATCHES[0]
    method = make(heads, gate=None, mu=0.0, nu=1.0).bind(network)
    features = {n: network.encoders[n](inputs[:, i]) for i, n in enumerate(NAMES)}
    alone, odds = [], []
    for name in NAMES:
        kept = {n: x * (n == name) for n, x in features.items()}
        alone.append(cross_entropy(network.decode(kept), target, reduction="none"))
        own = method.heads[name](features[name])
        odds.append(torch.exp(-cross_entropy(own, target, reduction="none")))
    p = torch.stack(odds, 1) / torch.stack(odds, 1).sum(1, keepdim=True)
    r = (p / p.mean(0)).clamp_max(3)
    chance = r / r.sum(1, keepdim=True)
    mixed = (chance * torch.stack(alone, 1)).sum(1).mean()
    expected = cross_entropy(network.decode(features), target) + 3 * mixed
    method.unbind()
    drawn = []
    for seed in range(300):
        again = make(copy.deepcopy(method.heads), gate=None, mu=0.0, nu=1.0, seed=seed)
        drawn.append(again.bind(network)(network(inputs), target).detach())
        again.unbind()
    drawn = torch.stack(drawn)
    assert drawn.std() > 0
    assert (drawn.mean() - expected).abs() < 4 * drawn.std() / 300**0.5


def test_ranks_draw_apart(monkeypatch):
    network, method = of_sum(gate=None)
    method(network(HAND), FIRST)
    draws = []
    for number in (0, 1, 0):
        monkeypatch.setattr(guided, "rank", lambda number=number: number)
        draws.append(torch.rand(8, generator=method._draws("kept")))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("setting", ["shuffled", None])
def test_controls_of_the_shares(setting):
    network, heads = make_late()
    inputs, target = BATCHES[0]
    rows = []
    for shares in ("live", setting):
        method = make(copy.deepcopy(heads), gate=None, shares=shares).bind(network)
        method(network(inputs), target)
        losses, seen = (x.detach() for x in method._losses(_step(method, network, inputs, target)))
        rows.append(method._shares(losses, seen, torch.ones(3), target))
        method.unbind()
    live, control = rows
    if setting is None:
        assert (control == 1).all()
    else:
        assert_close(control.sort(0).values, live.sort(0).values)
        assert not torch.equal(control, live)


def _step(method, network, inputs, target):
    found = []
    method.loss, kept = lambda step: found.append(step) or step.loss, method.loss
    method(network(inputs), target)
    method.loss = kept
    method._count(torch.zeros(16, 3), torch.ones(16, 3, dtype=torch.bool))
    return found[0]


def test_shares_count_as_far_as_losses_oppose_each_other():
    seen = torch.ones(4, 2, dtype=torch.bool)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for y, rho, expected in (
        (-x, -1.0, 1.0),
        (x, 1.0, 0.0),
        # deviations -1.5, -.5, .5, 1.5 and -.5, 1.5, -1.5, .5: the sum of products is -.5 + .. = 0
        (torch.tensor([2.0, 4.0, 1.0, 3.0]), 0.0, 0.0),
        # and 1.5, -.5, -1.5, .5 of 5 and 5: -2.25 + .25 - .75 + .75 = -2, so -0.4
        (torch.tensor([4.0, 2.0, 1.0, 3.0]), -0.4, 1.0),
        # .5, .5 - ... : 1.5, -1.5, .5, -.5 give -2.25 + .75 + .25 - .75 = -2, and 3, 2, 4, 1 too
        (torch.tensor([2.0, 4.0, 3.0, 1.0]), -0.4, 1.0),
    ):
        moments = _parts.pair_moments(torch.stack([x, y], 1), seen)
        assert _parts.mean_correlation(moments).item() == pytest.approx(rho, abs=1e-6)
        found = _parts.Guidance(2, 0.9).opposition({"moments": moments})
        assert found.item() == pytest.approx(expected, abs=1e-6)
    few = _parts.pair_moments(torch.rand(2, 2), seen[:2])
    assert _parts.mean_correlation(few).isnan()
    assert _parts.Guidance(2, 0.9).opposition({"moments": few}) == 1.0


def test_shuffled_rows_stay_with_samples_that_have_the_modality():
    seen = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    shares = torch.arange(8.0).reshape(4, 2) * seen
    found = _parts.shuffled_rows(shares, seen, torch.Generator().manual_seed(1))
    assert ((found > 0) <= seen).all()
    assert_close(found.sort(0).values, shares.sort(0).values)


def test_factors_take_the_place_of_weights():
    weights = []
    for factors in (0.5, {"b": 0.2, "a": 0.4}, {"a": [0.1, 0.2], "b": [0.3, 0.4]}):
        network, method = of_sum(factors=factors)
        for _ in range(12):
            network.zero_grad()
            method(network(HAND), FIRST).backward()
            sgd(network.parameters()).step()
            weights.append(tuple(method.readings["weight"].tolist()))
    rows = [{tuple(round(x, 4) for x in row) for row in weights[i : i + 12]} for i in (0, 12, 24)]
    assert rows == [{(0.5, 0.5)}, {(0.4, 0.2)}, {(0.1, 0.3), (0.2, 0.4)}]


def test_a_loss_that_vmap_cannot_take_is_looped_over():
    def asks(prediction, target):
        return cross_entropy(prediction, target) * (2.0 if prediction.sum().item() > 1e9 else 1.0)

    found = []
    for loss in (cross_entropy, asks):
        network, method = of_sum(task_loss=loss)
        found.append(method(network(HAND), FIRST).detach())
        assert method._losses_of.loops == (loss is asks)
    assert_close(*found)


def test_a_loss_that_cannot_be_had_for_one_sample_is_refused():
    def pairs(prediction, target):
        if len(prediction) < 2:
            raise RuntimeError("pairs need two samples")
        return cross_entropy(prediction, target)

    network, method = of_sum(task_loss=pairs)
    with pytest.raises(ValueError, match=r"each sample alone.*pairs need two samples.*Unimodal"):
        method(network(HAND), FIRST)
    vector = lambda z, y: cross_entropy(z, y, reduction="none")  # noqa: E731
    with pytest.raises(ValueError, match="a tensor of shape"):
        _parts.SampleLosses()(lambda z, y: vector(z, y)[None].expand(2, -1), HAND["a"], FIRST)


def test_targets_in_containers_and_lists():
    z = torch.randn(4, 3, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0])
    expected = cross_entropy(z, y, reduction="none")
    by_sample = _parts.SampleLosses()
    found, _ = by_sample(lambda p, t: cross_entropy(p, t["y"]), z, {"y": y})
    assert_close(found, expected)
    assert not by_sample.loops
    found, _ = by_sample(lambda p, t: cross_entropy(p, torch.stack(t)), z, list(y))
    assert_close(found, expected)
    assert by_sample.loops


def test_a_sample_without_a_label_has_no_share_and_no_gradient():
    network, method = of_sum(nu=0.0, gate=None)
    target = torch.tensor([0, -100, 0])  # what cross-entropy ignores
    loss = method(network(HAND), target)
    loss.backward()
    assert loss.isfinite()
    assert every(p.grad.isfinite().all() for p in network.parameters())
    # shares 3/4 and 1/4 of a mean of 1/2 over the two that are left
    of_each = (1.5 * log(4 / 3) + 0.5 * log(4)) / 2
    assert loss.item() == pytest.approx(log(2) + 2 * of_each, abs=1e-6)


def test_samples_that_lack_a_modality_have_no_share_of_it():
    network, method = of_sum(nu=0.0, gate=None)
    method.present({"b": torch.tensor([True, False, True, True])})
    four = {
        "a": logits(3 / 4, 9 / 10, 1 / 2, 1 / 4),
        "b": logits(1 / 4, 1 / 2, 1 / 2, 3 / 4),
    }
    zero = torch.zeros(4, dtype=torch.long)
    prediction = network(four)
    fused = cross_entropy(prediction, zero).item()
    loss = method(prediction, zero)
    # a: 2p is 3/2, 1 (nobody else is there), 1, 1/2, of a mean of 1; b: 1/2, 1, 3/2
    a = (1.5 * log(4 / 3) + log(10 / 9) + log(2) + 0.5 * log(4)) / 4
    b = (0.5 * log(4) + log(2) + 1.5 * log(4 / 3)) / 3
    assert loss.item() == pytest.approx(fused + a + b, abs=1e-6)
    assert_close(method.readings["lead"], torch.tensor([2 / 3, 1 / 3]))
    kept = method._kept(torch.ones(4, 2), method_step(method, network, four, zero))
    assert kept.sum(1).tolist() == [1, 1, 1, 1]


def method_step(method, network, inputs, target):
    method.present({"b": torch.tensor([True, False, True, True])})
    found = []
    method.loss, kept = lambda step: found.append(step) or step.loss, method.loss
    method(network(inputs), target)
    method.loss = kept
    return found[0]


def test_an_absent_modality_is_never_kept():
    network, method = of_sum(gate=None)
    there = torch.tensor([True, False, True])
    method.present({"b": there})
    step = None

    def catch(found):
        nonlocal step
        step = found
        return found.loss

    method.loss = catch
    method(network(HAND), FIRST)
    kept = [method._kept(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), step)]
    assert kept[0][0].tolist() == [False, True]
    assert kept[0][1].tolist() == [True, False]  # its chances are none, so what is there


def test_a_batch_that_lacks_a_modality_leaves_its_state_and_the_extra_pass_out():
    network, heads = make_late()
    method = make(heads).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    inputs, target = BATCHES[0]
    method(network(inputs), target).backward()
    optimizer.step()
    before = copy.deepcopy(method.guidance.state_dict())
    method.present({"audio": False})
    optimizer.zero_grad()
    loss = method(network(inputs), target)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name in ("share", "weight", "gate", "trust", "lead"):
        assert method.readings[name].isnan().tolist() == [False, True, False], name
    after = method.guidance.state_dict()
    for name in ("parts", "sizes", "steps"):
        assert (after[name] == before[name]).tolist() == [False, True, False], name


@pytest.mark.parametrize("size", [1, 2])
def test_small_batches_compare_with_running_means(size):
    network, heads = make_late()
    method = make(heads, nu=0.0).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    inputs, target = late_batch(40, seed=3)
    shares = []
    for i in range(0, 40, size):
        method(network(inputs[i : i + size]), target[i : i + size])
        shares.append(method.readings["share"])
        optimizer.step()
    means = torch.zeros(3)
    for share in shares:
        means = 0.99 * means + 0.01 * 3 * share
    assert_close(method.guidance.parts, means)
    typical = means / (1 - 0.99 ** len(shares))
    method(network(inputs[:size]), target[:size])
    ahead = 0.99 * means + 0.01 * 3 * method.readings["share"]
    ahead = ahead / (1 - 0.99 ** (len(shares) + 1))
    assert_close(method.guidance.typical_parts(method.window), ahead)
    assert (ahead - typical).abs().max() < 0.1
    if size == 1:  # nothing tells what chance gives
        assert method.readings["gate"].tolist() == [1.0, 1.0, 1.0]
        assert method.guidance.trust.tolist() == [1.0, 1.0, 1.0]


class LateDecoded(nn.Module):
    """A late-fusion network whose fusion can be run again."""

    def __init__(self):
        super().__init__()
        late = make_late_fused()
        self.encoders, self.output_layer = late.encoders, late.output_layer

    def forward(self, inputs):
        pairs = zip(self.encoders.items(), inputs.unbind(1), strict=True)
        return self.decode({n: e(x) for (n, e), x in pairs})

    def decode(self, features):
        return self.output_layer.combine(self.output_layer(features))


def test_a_late_fusion_network_judges_by_its_own_heads():
    network = LateDecoded()
    _, heads = make_late()
    method = make(heads, gate=None, nu=0.0).bind(network)
    assert method.heads is None
    inputs, target = BATCHES[0]
    twin = copy.deepcopy(network)
    loss = method(network(inputs), target)
    loss.backward()
    said = twin.output_layer({n: e(x) for (n, e), x in zip(
        twin.encoders.items(), inputs.unbind(1), strict=True)})  # fmt: skip
    losses = torch.stack([cross_entropy(z, target, reduction="none") for z in said.values()], 1)
    p = torch.exp(-losses.detach())
    p = p / p.sum(1, keepdim=True)
    r = (p / p.mean(0)).clamp_max(3)
    expected = cross_entropy(twin(inputs), target) + (r * losses).mean(0).sum()
    expected.backward()
    assert_close(loss, expected)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert_close(p.grad, q.grad)
    scores = torch.stack([accuracy(z, target) for z in said.values()])
    assert_close(method.readings["score"], scores)
    method.unbind()
    other, _ = make_late()
    with pytest.raises(ValueError, match="Make a new balancer"):
        method.bind(other)


def test_a_late_fusion_network_may_lack_modalities_and_takes_the_extra_pass():
    network = LateDecoded()
    method = make(make_late()[1]).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for masks in ({"text": torch.arange(16) < 5}, {"audio": False}, {}):
        method.present(masks)
        optimizer.zero_grad()
        method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
        optimizer.step()
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_a_network_without_decode_is_refused_unless_nothing_is_decoded():
    network = make_late_fused()
    with pytest.raises(ValueError, match="unless `nu` is 0"):
        make(make_late()[1]).bind(network)
    make(make_late()[1], nu=0.0).bind(network)


class SamePlaces(nn.Module):
    """A 1x1 convolution that returns what it gets."""

    def __init__(self):
        super().__init__()
        self.output_layer = nn.Conv1d(2, 2, 1, bias=False)
        self.output_layer.weight.data = torch.eye(2)[..., None]

    def forward(self, x):
        return self.output_layer(x)


class Places(Sum):
    """The same sum at each place of an image with one axis."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": SamePlaces(), "b": SamePlaces()})
        self.output_layer = SamePlaces().output_layer


def of_places(**settings):
    network = Places()
    return network, make({"a": SamePlaces(), "b": SamePlaces()}, **settings).bind(network)


PLACES = torch.zeros(2, 3, dtype=torch.long)
# two images of three places; a and b are mirrored, so that each alone has the same loss
IMAGES = {name: torch.stack([x.T, x.T]) for name, x in HAND.items()}
ALONE = (log(4 / 3) + log(2) + log(4)) / 3


def test_a_dense_task_has_neither_shares_nor_gates_and_says_so_once():
    network, method = of_places(nu=2.0)
    with pytest.warns(RuntimeWarning, match="dense task.*trains without") as warned:
        losses = [method(network(IMAGES), PLACES).item() for _ in range(2)]
    assert len(warned) == 1
    # fused probabilities are 1/2; each head alone; twice a pass with either, times two weights of 1
    assert losses[0] == pytest.approx(log(2) + 2 * ALONE + 2.0 * 2 * ALONE, abs=1e-6)
    assert "share" not in method.readings


@pytest.mark.parametrize("gate", ["auto", "signal"])
def test_weights_of_a_dense_task_are_equal_whatever_heads_say(gate):
    network, method = of_places(nu=0.0, shares=None, gate=gate)
    # a tells the two images apart, b sees the same in both
    target = torch.tensor([[0, 0, 0], [1, 1, 1]])
    sure = torch.tensor([[[3.0] * 3, [-3.0] * 3], [[-3.0] * 3, [3.0] * 3]])
    with pytest.warns(RuntimeWarning, match="dense task"):
        method(network({"a": sure, "b": IMAGES["b"]}), target)
    # gates 1 and 0 of a signal: factors 2 (1 - 1) = 0 and 2, of which (1 + B) / 2
    expected = [1.0, 1.0] if gate == "auto" else [0.5, 1.5]
    assert_close(method.readings["weight"], torch.tensor(expected))


def test_a_gate_of_losses_sees_a_signal_that_no_score_sees():
    target = torch.tensor([[0, 0, 0], [1, 1, 1]])
    # a is unsure of the second image, b sees no difference; all of it looks like the first class
    unsure = torch.stack([logits(0.9, 0.9, 0.9).T, logits(0.7, 0.7, 0.7).T])
    images = {"a": unsure, "b": torch.zeros(2, 2, 3)}
    network, method = of_places(nu=0.0, gate="signal", patience=0.0)
    with pytest.warns(RuntimeWarning, match="dense task"):
        method(network(images), target)
    assert method.readings["trust"].tolist() == method.readings["weight"].tolist() == [0.0, 0.0]
    network, method = of_places(nu=0.0, gate="loss", patience=0.0)
    with pytest.warns(RuntimeWarning, match="dense task"):
        loss = method(network(images), target)
    # gates 1 and 0, so that B is 0 and 2, and weights (1 + B) / 2; trust in both
    assert method.readings["trust"].tolist() == [1.0, 1.0]
    assert_close(method.readings["weight"], torch.tensor([0.5, 1.5]))
    of_a = (-log(0.9) - log(0.3)) / 2
    # b adds nothing to the sum, so that the network predicts what a does
    assert loss.item() == pytest.approx(of_a + 0.5 * of_a + 1.5 * log(2), abs=1e-6)


def test_images_that_lack_a_modality_count_nothing_of_it_in_a_dense_task():
    network, method = of_places(nu=1.0)
    lacking = torch.tensor([[5.0] * 3, [-5.0] * 3])
    images = {"a": torch.stack([IMAGES["a"][0], lacking]), "b": IMAGES["b"]}
    method.present({"a": torch.tensor([True, False])})
    with pytest.warns(RuntimeWarning, match="dense task"):
        loss = method(network(images), PLACES).item()
    odds = [1 / 3, 1.0, 3.0]  # of b at the three places; a's add exp(10)
    second = sum(log(1 + exp(-10) / o) for o in odds) / 3
    fused = (log(2) + second) / 2
    # a's head is judged by the first image; b is all that the second can keep
    assert loss == pytest.approx(fused + 2 * ALONE + 2 * ALONE, abs=1e-6)


def test_shares_of_a_dense_task_act_where_they_are_asked_for():
    network, method = of_places(nu=0.0, shares="live", gate=None)
    with pytest.warns(RuntimeWarning, match="dense task.*the default"):
        method(network(IMAGES), PLACES)
    assert "share" in method.readings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_loss_scaling_give_the_same_direction(dtype):
    network, heads = make_late()
    full, others = copy.deepcopy((network, heads))
    inputs, target = BATCHES[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    with torch.autocast("cpu", dtype):
        loss = make(heads).bind(network)(network(inputs), target)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    make(others).bind(full)(full(inputs), target).backward()
    scale = scaler.get_scale()
    for p, q in zip(network.parameters(), full.parameters(), strict=True):
        assert_close(p.grad / scale, q.grad, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu": -1.0}, "`mu` finite and not negative"),
        ({"nu": float("nan")}, "`nu` finite"),
        ({"shares": "dead"}, "`shares` to be one of"),
        ({"gate": "open"}, "`gate` to be one of"),
        ({"temperature": 0.0}, "`temperature` positive"),
        ({"temperature": "hot"}, "`temperature` positive"),
        ({"switch": "on"}, "`switch` to be one of"),
        ({"patience": 1.5}, r"`patience` in \[0, 1\]"),
        ({"factors": -1.0}, "`factors` finite"),
        ({"factors": {"a": 1.0}}, "`factors` for the modalities"),
        ({"factors": {"a": [1.0], "b": []}}, "as many `factors`"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        of_sum(**settings)
