"""OGM and OGM-GE: the published rule on numbers worked out by hand, the noise, what is refused."""

import copy
from math import exp, tanh

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from cggm.methods._parts.confidence import confidence_ratios, ogm_factors, true_class_probability
from cggm.methods.ogm import OGM
from tests.cggm.networks import NAMES, LinearHead, late_batch, make_late
from tests.cggm.networks import train as loop
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every
from tests.ranks import on_two_ranks

BATCHES = [late_batch(seed=seed) for seed in range(6)]
PAIR = ("audio", "video")


class Concatenation(nn.Module):
    """The published network: a linear layer on concatenated features."""

    def __init__(self, names=PAIR, order=1, classes=4, bias=True):
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(5, 6) for n in names})
        self.output_layer = nn.Linear(6 * len(names), classes, bias=bias)
        self.order = order

    def forward(self, inputs):
        parts = [e(x) for e, x in zip(self.encoders.values(), inputs.unbind(1), strict=True)]
        return self.output_layer(torch.cat(parts[:: self.order], 1))


class Scripted:
    """Scores given in advance, one per head and call."""

    def __init__(self, rows):
        self.values = iter([value for row in rows for value in row])

    def __call__(self, prediction, target):
        return prediction.new_tensor(next(self.values))


def l1(prediction, target):
    return nn.functional.l1_loss(prediction[:, 0], target.float())


def make_ogm(heads, score=None, loss=nn.functional.cross_entropy, **settings):
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return OGM(heads, loss, score, **settings)


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def train(network, criterion, batches, optimizer=None):
    return loop(network, optimizer or sgd(network), criterion, batches)


def gradients(network, criterion, batch):
    network.zero_grad()
    criterion(network(batch[0]), batch[1]).backward()
    return [p.grad.clone() for p in network.parameters()]


def test_published_rule_on_hand_computed_numbers():
    # the true class has probabilities 3/4 and 1/2, then 1/4 and 1/2: scores 1.25 and 0.75
    strong = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    strong[0, 1] = torch.tensor(3.0).log()
    weak = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    weak[0, 1] = -torch.tensor(3.0).log()
    target = torch.tensor([1, 0])
    scores = torch.stack([true_class_probability(x, target)[0][0] for x in (strong, weak)])
    assert_close(scores, torch.tensor([1.25, 0.75]))
    ratios = confidence_ratios(scores)
    assert_close(ratios, torch.tensor([5 / 3, 3 / 5]))
    expected = torch.tensor([1 - tanh(0.8 * 5 / 3), 1.0])
    assert_close(ogm_factors(ratios, 0.8, continuous=False), expected)
    expected = torch.tensor([1 - tanh(0.8 * 2 / 3), 1.0])
    assert_close(ogm_factors(ratios, 0.8, continuous=True), expected)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.8])
def test_only_the_published_rule_jumps_at_ratio_one(alpha):
    ratios = torch.tensor([1.0, 1.0 + 1e-6])
    published = ogm_factors(ratios, alpha, continuous=False)
    assert_close(published, torch.tensor([1.0, 1 - tanh(alpha)]))
    assert_close(ogm_factors(ratios, alpha, continuous=True), torch.ones(2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8])
def test_equal_scores_have_ratio_one_exactly(count):
    for value in torch.rand(50, generator=torch.Generator().manual_seed(count)):
        assert confidence_ratios(value.expand(count)).tolist() == [1.0] * count


def test_more_modalities_are_compared_with_the_mean_of_the_others():
    scores = torch.tensor([0.9, 0.6, 0.3])
    assert_close(confidence_ratios(scores), torch.tensor([2.0, 1.0, 0.4]))
    order = torch.tensor([2, 0, 1])
    assert_close(confidence_ratios(scores[order]), confidence_ratios(scores)[order])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.4], [1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([float("nan"), 0.5], [1.0, 1.0]),
        ([0.5, 0.0], [0.0, 1.0]),
        ([-1.0, -2.0], [1 - tanh(0.5 * (exp(1.0) - 1)), 1.0]),
        ([-400.0, -401.0], [1 - tanh(0.5 * (exp(1.0) - 1)), 1.0]),
    ],
)
@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_odd_scores_give_finite_factors(scores, expected, alpha):
    ratios = confidence_ratios(torch.tensor(scores))
    wanted = torch.tensor(expected) if alpha else torch.ones(len(scores))
    assert_close(ogm_factors(ratios, alpha, continuous=True), wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("names", [PAIR, NAMES])
def test_split_logits_are_the_published_ones(names, bias):
    network = Concatenation(names, bias=bias)
    ogm = make_ogm(None, alpha=0.8, continuous=False, logits="split").bind(network)
    inputs, target = late_batch(names=names)
    ogm(network(inputs), target)
    layer, logits = network.output_layer, []
    for index, (encoder, weight) in enumerate(
        zip(network.encoders.values(), layer.weight.split(6, 1), strict=True)
    ):
        logits.append(encoder(inputs[:, index]) @ weight.T)
        logits[-1] += layer.bias / len(names) if bias else 0
    assert_close(sum(logits), network(inputs))
    scores = torch.stack([z.softmax(1)[torch.arange(16), target].mean() for z in logits])
    assert_close(ogm.readings["score"], scores.detach())
    for index, term in enumerate(ogm.readings["term"].tolist()):
        ratio = (scores[index] / (scores.sum() - scores[index])).item() * (len(names) - 1)
        assert term == pytest.approx(1 - tanh(0.8 * ratio) if ratio > 1 else 1, rel=1e-5)


def test_split_follows_names_whatever_runs_first():
    class Backwards(Concatenation):
        def forward(self, inputs):
            self.encoders["video"](inputs[:, 1])
            audio = self.encoders["audio"](inputs[:, 0])
            video = self.encoders["video"](inputs[:, 1])
            return self.output_layer(torch.cat([audio, video], 1))

    inputs, target = late_batch(names=PAIR)
    scores = []
    for kind in (Concatenation, Backwards):
        torch.manual_seed(0)
        network = kind()
        ogm = make_ogm(None, logits="split").bind(network)
        ogm(network(inputs), target)
        scores.append(ogm.readings["score"])
    assert_close(*scores)


def test_heads_learn_once_the_optimizer_stepped():
    network, heads = make_late()
    ogm = make_ogm(heads).bind(network)
    before = copy.deepcopy(ogm.heads)
    ogm(network(BATCHES[0][0]), BATCHES[0][1]).backward()
    assert torch.equal(heads["text"].output_layer.weight, before["text"].output_layer.weight)
    sgd(network).step()
    assert not torch.equal(heads["text"].output_layer.weight, before["text"].output_layer.weight)


def test_one_step_scales_every_parameter_of_every_encoder_once():
    network, heads = make_late()
    joint = copy.deepcopy(network)
    ogm = make_ogm(heads, alpha=0.8, continuous=False).bind(network)
    ours = gradients(network, ogm, BATCHES[0])
    theirs = gradients(joint, nn.functional.cross_entropy, BATCHES[0])
    terms = ogm.readings["term"]
    assert terms.min() < 1
    assert terms.max() == 1
    per_encoder = len(list(network.encoders["text"].parameters()))
    factors = [*terms.repeat_interleave(per_encoder), *[torch.ones(())] * 4]
    for a, b, factor in zip(ours, theirs, factors, strict=True):
        assert_close(a, b * factor, rtol=1e-5, atol=1e-8)


def test_update_scaling_is_felt_under_adam():
    network, heads = make_late()
    start = copy.deepcopy(network)
    ogm = make_ogm(heads, alpha=0.8, continuous=False, acts_on="update").bind(network)
    adam = torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-12)
    (terms,) = train(network, ogm, BATCHES[:1], adam)
    moved = [(network.encoders[n][2].weight - start.encoders[n][2].weight).abs() for n in NAMES]
    assert_close(torch.stack([m.max() for m in moved]), 0.01 * terms, rtol=1e-3, atol=0)


def test_regression_uses_the_given_score():
    network, heads = make_late(classes=1)
    heads = {name: LinearHead(classes=1) for name in heads}
    score = Scripted([[-1.0, -1.0, -2.0]])
    ogm = make_ogm(heads, score, l1, alpha=1.0, continuous=True).bind(network)
    (terms,) = train(network, ogm, [(BATCHES[0][0], BATCHES[0][1].float())])
    ratio = 2 / (1 + exp(-1))
    expected = torch.tensor([1 - tanh(ratio - 1)] * 2 + [1.0])
    assert_close(terms, expected)


def test_ignored_classes_do_not_count():
    target = torch.tensor([1, -100])
    above, below = true_class_probability(torch.zeros(2, 4), target)
    assert (above.item(), below.item()) == (0.25, 1)


def noisy(alpha, seed=0, micro_batches=1):
    """Balancer, network and gradients: joint, and scaled without noise."""
    torch.manual_seed(seed)
    network = Concatenation()
    network.encoders["video"] = nn.Sequential(nn.Linear(5, 400), nn.Linear(400, 6))
    joint = copy.deepcopy(network)
    ogm = make_ogm(None, logits="split", alpha=alpha, continuous=False, noise=True).bind(network)
    inputs, target = late_batch(names=PAIR)
    for x, y in zip(inputs.chunk(micro_batches), target.chunk(micro_batches), strict=True):
        (ogm(network(x), y) / micro_batches).backward()
    plain = gradients(joint, nn.functional.cross_entropy, (inputs, target))
    scaled = [p.grad.clone() for p in network.parameters()]
    sgd(network, lr=0.0).step()
    return ogm, network, plain, scaled


@pytest.mark.parametrize("alpha", [0.0, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_has_the_spread_of_the_gradient_before_scaling(alpha, seed):
    _, network, plain, scaled = noisy(alpha, seed)
    for index, p in enumerate(network.parameters()):
        noise = p.grad - scaled[index]
        if p.ndim < 2 or p is network.output_layer.weight:
            assert noise.abs().max() == 0
        elif p.numel() > 1000:
            assert noise.std() / plain[index].std() == pytest.approx(1, abs=0.05)
            assert noise.mean().abs() < 0.1 * plain[index].std()


def test_noise_under_accumulation_has_nearly_that_spread():
    _, network, plain, scaled = noisy(0.8, micro_batches=4)
    weight = network.encoders["video"][0].weight
    index = next(i for i, p in enumerate(network.parameters()) if p is weight)
    assert (weight.grad - scaled[index]).std() / plain[index].std() == pytest.approx(1, abs=0.2)


def test_noise_continues_after_a_checkpoint_whatever_the_global_generator():
    network, heads = make_late()
    ogm = make_ogm(heads, noise=True).bind(network)
    train(network, ogm, BATCHES[:3])
    state = copy.deepcopy([network.state_dict(), ogm.state_dict()])
    train(network, ogm, BATCHES[3:])
    torch.manual_seed(99)
    again, heads = make_late(seed=5)
    restored = make_ogm(heads, noise=True).bind(again)
    again.load_state_dict(state[0])
    restored.load_state_dict(state[1])
    train(again, restored, BATCHES[3:])
    for p, q in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_epochs_outside_the_window_are_joint_training():
    network, heads = make_late()
    settings = {"alpha": 0.8, "continuous": False, "noise": True}
    ogm = make_ogm(heads, first_epoch=2, last_epoch=3, **settings).bind(network)
    changed = []
    for epoch in (1, 2, 3, 4):
        ogm.start_epoch(epoch)
        joint = copy.deepcopy(network)
        (terms,) = train(network, ogm, BATCHES[:1])
        assert (terms.min() < 1) == (epoch in (2, 3))
        optimizer = sgd(joint)
        gradients(joint, nn.functional.cross_entropy, BATCHES[0])
        optimizer.step()
        pairs = zip(network.parameters(), joint.parameters(), strict=True)
        changed.append(not every(torch.equal(p, q) for p, q in pairs))
    assert changed == [False, True, True, False]


def test_accumulation_scores_the_whole_window():
    network, heads = make_late()
    ogm = make_ogm(heads, alpha=0.8).bind(network)
    inputs, target = BATCHES[0]
    optimizer = sgd(network)
    ogm(network(inputs), target)
    whole = ogm.readings["score"]
    ogm.abandon()
    for x, y in zip(inputs.chunk(4), target.chunk(4), strict=True):
        ogm(network(x), y).backward()
    assert_close(ogm.readings["score"], whole)
    optimizer.step()
    ogm(network(inputs), target)
    assert ogm.readings["score"][0] != whole[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_changes_neither_factors_nor_noise(dtype, fused):
    ended = []
    for scale in (1.0, 256.0):
        network, heads = make_late()
        ogm = make_ogm(heads, noise=True).bind(network)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=fused)
        for inputs, target in BATCHES[:2]:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = ogm(network(inputs), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert every(v.dtype == torch.float32 for v in ogm.readings.values())
        ended.append(list(network.parameters()))
    for p, q in zip(*ended, strict=True):
        assert_close(p, q, rtol=0.02, atol=0.002)


def test_split_is_refused_where_the_layer_cannot_be_split():
    network, _ = make_late()
    swapped = Concatenation(order=-1)
    for refused, batch in ((network, BATCHES[0]), (swapped, late_batch(names=PAIR))):
        ogm = make_ogm(None, logits="split").bind(refused)
        with pytest.raises(ValueError, match=r"concatenated outputs.*Use logits=\"heads\""):
            ogm(refused(batch[0]), batch[1])


def test_regression_without_a_score_is_refused():
    network, _ = make_late(classes=1)
    ogm = make_ogm({n: LinearHead(classes=1) for n in NAMES}, None, l1).bind(network)
    with pytest.raises(ValueError, match=r"no score\. Give one"):
        ogm(network(BATCHES[0][0]), BATCHES[0][1].float())


def test_noise_is_added_within_a_closure():
    ends = []
    for closed, noise in ((False, True), (True, True), (True, False)):
        network, heads = make_late()
        ogm = make_ogm(heads, noise=noise).bind(network)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)

        def closure(network=network, ogm=ogm, optimizer=optimizer):
            optimizer.zero_grad()
            loss = ogm(network(BATCHES[0][0]), BATCHES[0][1])
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure) if closed else (closure(), optimizer.step())
        ends.append(next(network.encoders["text"].parameters()).detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "`alpha`"),
        ({"first_epoch": 0}, "`first_epoch`"),
        ({"first_epoch": 3, "last_epoch": 2}, "`last_epoch`"),
        ({"logits": "mask"}, "`logits`"),
        ({"acts_on": "loss"}, "`acts_on`"),
        ({"acts_on": "update", "noise": True}, "`acts_on`.*noise=True"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_ogm({n: LinearHead() for n in NAMES}, **settings)
    with pytest.raises(ValueError, match="heads or logits='split'"):
        make_ogm(None)


@pytest.mark.parametrize("settings", [{"noise": True}, {"acts_on": "update"}])
def test_a_step_never_waits_for_the_device(settings):
    network, heads = make_late()
    ogm = make_ogm(heads, **settings).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    train(network, ogm, BATCHES[:1], optimizer)
    with NoSynchronization():
        for inputs, target in BATCHES[1:3]:
            optimizer.zero_grad(set_to_none=False)
            for _ in range(2):
                ogm(network(inputs), target).backward()
            optimizer.step()


def state_of_rank(rank):
    """What the network ends with on this rank's half of each batch, and the last readings."""
    network, heads = make_late()
    torch.manual_seed(rank)
    wrapped = DistributedDataParallel(network)
    ogm = make_ogm(heads, noise=True).bind(wrapped)
    for seed in range(3):
        inputs, target = (part.chunk(2)[rank] for part in late_batch(seed=seed))
        network.zero_grad()
        ogm(wrapped(inputs), target).backward()
        sgd(network).step()
    return [network.state_dict(), ogm.readings]


def test_ranks_share_factors_and_noise(tmp_path):
    first, second = on_two_ranks(state_of_rank, tmp_path)
    for a, b in zip(first, second, strict=True):
        assert every(torch.equal(a[key], b[key]) for key in a)
