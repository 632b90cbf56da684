"""MSLR: rates of each strategy on numbers worked out by hand, epochs, state, refusals."""

import copy
import io

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.testing import assert_close

from cggm import BalanceHandler
from cggm.methods._parts.epoch_scores import score_ratios
from cggm.methods.mslr import ModalityLearningRates
from tests.cggm.networks import NAMES, accuracy, late_batch, make_late, train
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(8)]
RATES = {"video": 1.4, "text": 0.7, "audio": 0.9}
IN_ORDER = torch.tensor([0.7, 0.9, 1.4])


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1)


def make(names=NAMES, score=accuracy, **settings):
    network, heads = make_late(names)
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    balancer = ModalityLearningRates(nn.functional.cross_entropy, heads, score, **settings)
    return network, balancer.bind(network)


def joint_step(network, optimizer, batch):
    inputs, target = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(inputs), target).backward()
    optimizer.step()


class Scripted:
    """Held-out data on which heads have given scores."""

    def __init__(self, *scores):
        self.scores = iter(scores)

    def score(self, heads, score):
        assert list(heads) == ["a", "b"]
        return torch.tensor(next(self.scores))


def test_dynamic_rates_follow_the_scores_on_held_out_data():
    held_out = Scripted([0.5, 0.8], [0.75, 0.4])
    network, balancer = make(("a", "b"), strategy="dynamic", window=2, held_out=held_out)
    seen = []
    for epoch in (1, 2, 3):
        balancer.start_epoch(epoch)
        seen += train(network, sgd(network), balancer, [late_batch(names=("a", "b"))])
        if epoch == 3:  # of which no held-out score is left
            balancer.observe_validation({"a": 1.0, "b": 1.0})
        balancer.end_epoch(epoch)
    # 0.75 over the mean of 0.5 and 0.75; 0.4 over that of 0.8 and 0.4
    assert_close(seen[2], torch.tensor([1.2, 2 / 3]))


@pytest.mark.parametrize("optimizer", [sgd, lambda n: torch.optim.Adam(n.parameters(), lr=0.01)])
def test_keep_multiplies_each_encoders_step_by_its_rate(optimizer):
    network, balancer = make(strategy="keep", rates=RATES)
    start, joint = copy.deepcopy(network), copy.deepcopy(network)
    joint_step(joint, optimizer(joint), BATCHES[0])
    train(network, optimizer(network), balancer, BATCHES[:1])
    for name, rate in RATES.items():
        parts = [n.encoders[name].parameters() for n in (network, joint, start)]
        for ours, theirs, before in zip(*parts, strict=True):
            assert_close(ours - before, (theirs - before) * rate, rtol=1e-4, atol=1e-6)
    assert torch.equal(network.fusion[0].weight, joint.fusion[0].weight)
    assert torch.equal(network.output_layer.weight, joint.output_layer.weight)


def test_keep_is_an_optimizer_with_groups_of_those_rates():
    network, balancer = make(strategy="keep", rates=RATES)
    grouped = copy.deepcopy(network)
    rest = [*grouped.fusion.parameters(), *grouped.output_layer.parameters()]
    groups = [
        {"params": grouped.encoders[n].parameters(), "lr": 0.01 * r} for n, r in RATES.items()
    ]
    optimizer = torch.optim.AdamW([*groups, {"params": rest}], lr=0.01, weight_decay=0.1)
    for batch in BATCHES:
        joint_step(grouped, optimizer, batch)
    ours = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    train(network, ours, balancer, BATCHES)
    for p, q in zip(network.parameters(), grouped.parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_smooth_moves_from_the_unimodal_rates_to_the_shared_one():
    network, balancer = make(strategy="smooth", rates=RATES, epochs=4)
    seen = []
    for epoch in range(1, 7):
        balancer.start_epoch(epoch)
        seen += train(network, sgd(network), balancer, BATCHES[:1])
    assert_close(seen[0], IN_ORDER)
    assert_close(seen[1], torch.tensor([0.775, 0.925, 1.3]))
    assert_close(seen[2], torch.tensor([0.85, 0.95, 1.2]))
    assert_close(seen[4], torch.ones(3))
    assert_close(seen[5], torch.ones(3))


def run_dynamic(validation, **settings):
    network, balancer = make(("a", "b"), strategy="dynamic", **settings)
    batch = [late_batch(names=("a", "b"))]
    seen = []
    for epoch, scores in enumerate(validation, 1):
        balancer.start_epoch(epoch)
        seen += train(network, sgd(network), balancer, batch)
        balancer.observe_validation(dict(zip("ab", scores, strict=True)))
        balancer.end_epoch(epoch)
    return torch.stack(seen)


def test_dynamic_on_validation_scores_worked_out_by_hand():
    scores = [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.6, 0.4)]
    # epoch 2: one score; epoch 3: .4/.3, .6/.7; epoch 4, means of two epochs: .6/.5, .4/.5
    expected = torch.tensor([[1, 1], [1, 1], [4 / 3, 6 / 7], [1.2, 0.8]])
    assert_close(run_dynamic(scores, window=2), expected)
    rates = {"a": 0.5, "b": 2.0}
    assert_close(run_dynamic(scores, window=2, rates=rates), expected * torch.tensor([0.5, 2.0]))
    compound = torch.tensor([[1, 1], [1, 1], [4 / 3, 6 / 7], [1.6, 6 / 7 * 0.8]])
    assert_close(run_dynamic(scores, window=2, compound=True), compound)
    limited = expected.clamp(0.85, 1.25)
    assert_close(run_dynamic(scores, window=2, limits=(0.85, 1.25)), limited)
    # all epochs so far: epoch 4 is .6/.4, .4/.6
    assert_close(run_dynamic(scores)[3], torch.tensor([1.5, 2 / 3]))


def test_a_negated_error_gets_a_larger_rate_while_it_shrinks():
    scores, means = torch.tensor([-0.5, -2.0, 0.0]), torch.tensor([-1.0, -1.0, 0.5])
    assert_close(score_ratios(scores, means), torch.tensor([2.0, 0.5, 0.0]))
    nan = float("nan")
    undefined = score_ratios(torch.tensor([0.1, -0.1, 0.0, nan]), torch.tensor([-1.0, 1.0, 0, nan]))
    assert undefined.tolist() == [1, 1, 1, 1]


def test_training_scores_are_means_over_the_epochs_steps():
    rows = iter([0.1, 0.5, 0.5, 0.5, 0.6, 0.2, 0.6, 0.2])
    network, balancer = make(
        ("a", "b"), lambda p, t: torch.tensor(next(rows)), strategy="dynamic", limits=(0.1, 9.0)
    )
    batch = late_batch(names=("a", "b"))
    for epoch in (1, 2):
        balancer.start_epoch(epoch)
        train(network, sgd(network), balancer, [batch, batch])
    balancer.start_epoch(2)
    assert balancer.epoch_scores.steps == 2
    balancer.start_epoch(3)
    # means .3 and .5, then .6 and .2, over .45 and .35
    assert_close(balancer.factors, torch.tensor([0.6 / 0.45, 0.2 / 0.35]))


def test_permuted_modalities_permute_the_rates():
    order = [2, 0, 1]
    names = tuple(NAMES[i] for i in order)
    network, balancer = make(names, strategy="keep", rates=RATES)
    batch = [late_batch(names=names)]
    assert_close(train(network, sgd(network), balancer, batch)[0], IN_ORDER[order])


@pytest.mark.parametrize("strategy", ["keep", "smooth", "dynamic"])
def test_resume_in_the_middle_of_an_epoch_is_exact(strategy):
    def epochs(network, balancer, first, batches):
        terms = train(network, sgd(network), balancer, batches)
        balancer.start_epoch(first + 1)
        return terms + train(network, sgd(network), balancer, BATCHES[4:])

    settings = {"strategy": strategy, "rates": RATES, "epochs": 3}
    network, balancer = make(**settings)
    balancer.start_epoch(1)
    train(network, sgd(network), balancer, BATCHES[:4])
    balancer.start_epoch(2)
    train(network, sgd(network), balancer, BATCHES[:2])
    file = io.BytesIO()
    torch.save([network.state_dict(), balancer.state_dict()], file)
    file.seek(0)
    whole = epochs(network, balancer, 2, BATCHES[2:4])
    again, restored = make(**settings)
    for part, state in zip((again, restored), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    restored.start_epoch(2)
    assert every(
        torch.equal(a, b)
        for a, b in zip(whole, epochs(again, restored, 2, BATCHES[2:4]), strict=True)
    )
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_a_handler_announces_epochs():
    network, balancer = make(strategy="dynamic")
    optimizer = sgd(network)
    engine = Engine(lambda engine, batch: train(network, optimizer, balancer, [batch])[0])
    BalanceHandler(balancer).attach(engine)
    engine.run(BATCHES, max_epochs=3)
    assert balancer.epoch_scores.steps == 8
    assert balancer.epoch_scores.history.isfinite().all(1).sum() == 2
    assert balancer.factors.tolist() != [1, 1, 1]


def test_an_accumulation_window_counts_once():
    network, balancer = make(strategy="dynamic")
    balancer.start_epoch(1)
    optimizer = sgd(network)
    for inputs, target in BATCHES[:2]:
        balancer(network(inputs), target).backward()
    optimizer.step()
    assert balancer.epoch_scores.steps == 1
    assert_close(balancer.epoch_scores.total, balancer.readings["score"])


def test_only_dynamic_trains_heads():
    assert make(strategy="keep", rates=RATES)[1].heads is None
    assert make(strategy="dynamic")[1].heads is not None


@pytest.mark.parametrize("strategy", ["smooth", "dynamic"])
def test_without_epochs_a_strategy_that_needs_them_refuses(strategy):
    network, balancer = make(strategy=strategy)
    with pytest.raises(RuntimeError, match="Attach a BalanceHandler"):
        train(network, sgd(network), balancer, BATCHES[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "fast"}, "`strategy` to be one of"),
        ({"rates": -1.0}, "`rates` finite and not negative"),
        ({"rates": {"text": 1.0}}, "`rates` for the modalities.*but got"),
        ({"epochs": 0}, "`epochs`"),
        ({"window": 0}, "`window`"),
        ({"limits": (1.5, 2.0)}, "`limits` around 1"),
        ({"strategy": "dynamic", "score": None}, "heads and a score"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_refused_bind_leaves_no_hook():
    network, heads = make_late()
    balancer = ModalityLearningRates(nn.functional.cross_entropy, heads, rates={"mri": 1.0})
    with pytest.raises(ValueError, match="'mri'"):
        balancer.bind(network)
    assert not balancer.bound
    assert none(m._forward_hooks for m in network.modules())
    _, keep = make(strategy="keep")
    with pytest.raises(ValueError, match="'dynamic'"):
        keep.observe_validation({})
