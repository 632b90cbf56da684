"""Trials: the original stays untouched, branches train as if alone, losses are means by sample."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from cggm import Balancer
from cggm.trials import Course, Trials, unhooked_copy
from tests.cggm.networks import NAMES, accuracy, late_batch, make_cggm, make_late
from tests.quantifiers import every, none

cross_entropy = nn.functional.cross_entropy
TRAIN, VALID = late_batch(12), late_batch(5, seed=9)


def parts(batch, size):
    return list(zip(*(tensor.split(size) for tensor in batch), strict=True))


def make_trials(network, loss=cross_entropy, lr=0.1, size=4):
    return Trials(
        network,
        loss,
        lambda epoch: parts(TRAIN, size),
        lambda epoch: parts(VALID, size),
        lambda p: torch.optim.SGD(p, lr=lr),
    )


def with_norms(network):
    """Batch statistics, dropout and running sums: what a trial could disturb."""
    for name in NAMES:
        network.encoders[name].append(nn.BatchNorm1d(6)).append(nn.Dropout(0.5))
    return network


def same(states):
    first, second = states
    return every(torch.equal(first[key], second[key]) for key in first)


def only(*positions):
    weights = torch.zeros(len(NAMES) + 1)
    weights[list(positions)] = 1
    return weights


def test_a_trial_leaves_the_original_untouched():
    network, heads = make_late()
    with_norms(network)
    cross_entropy(network(TRAIN[0]), TRAIN[1]).backward()
    network.eval()
    before = copy.deepcopy([network.state_dict(), nn.ModuleDict(heads).state_dict()])
    gradients = [p.grad.clone() for p in network.parameters()]
    random = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*TRAIN), 4, shuffle=True)
    trials = make_trials(network)
    trials.train = lambda epoch: loader
    trial = trials.copy(heads)
    trial.fit(only(0, 1, 2, 3), 2)
    trial.losses()
    assert torch.equal(random, torch.get_rng_state())
    assert same([before[0], network.state_dict()])
    assert same([before[1], nn.ModuleDict(heads).state_dict()])
    assert every(
        torch.equal(g, p.grad) for g, p in zip(gradients, network.parameters(), strict=True)
    )
    assert none(module.training for module in network.modules())
    assert not same([before[0], trial.network.state_dict()])
    assert not same([before[1], trial.heads.state_dict()])


def test_modalities_fitted_together_equal_modalities_fitted_apart():
    network, heads = make_late()
    together = make_trials(network).copy(heads)
    together.fit(only(0, 1, 2), 3)
    for index, name in enumerate(NAMES):
        alone = make_trials(network).copy(heads)
        alone.fit(only(index), 3)
        assert same([alone.encoders[name].state_dict(), together.encoders[name].state_dict()])
        assert same([alone.heads[name].state_dict(), together.heads[name].state_dict()])
    assert same([network.output_layer.state_dict(), together.network.output_layer.state_dict()])


def test_the_fused_branch_is_joint_training():
    network, heads = make_late()
    trial = make_trials(network).copy(heads)
    trial.fit(only(3), 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for inputs, target in 2 * parts(TRAIN, 4):
        optimizer.zero_grad()
        cross_entropy(network(inputs), target).backward()
        optimizer.step()
    assert same([network.state_dict(), trial.network.state_dict()])
    assert same([nn.ModuleDict(heads).state_dict(), trial.heads.state_dict()])


def test_a_branch_without_weight_may_diverge():
    network, heads = make_late()
    nn.init.constant_(heads["audio"].output_layer.weight, float("nan"))
    trial = make_trials(network).copy(heads)
    trial.fit(only(0, 3), 1)
    assert every(p.isfinite().all() for p in trial.network.parameters())


class Given(nn.Module):
    """Encoders and heads that multiply, a fused prediction that adds."""

    def __init__(self, factors):
        super().__init__()
        self.encoders = nn.ModuleDict({name: Factor(f) for name, f in factors.items()})
        self.output_layer = nn.Linear(1, 1)

    def forward(self, inputs):
        pairs = zip(self.encoders.values(), inputs.unbind(1), strict=True)
        return sum(encoder(x) for encoder, x in pairs)


class Factor(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value * x


def test_losses_are_means_over_samples_whatever_the_batches():
    # predictions of a: 2x, through a head of 3 6x; of b: -x, through a head of 1 -x; fused: x
    network, heads = Given({"a": 2.0, "b": -1.0}), {"a": Factor(3.0), "b": Factor(1.0)}

    def batches(*values):
        return [(torch.tensor(v)[:, None].expand(-1, 2), torch.zeros(len(v))) for v in values]

    trials = Trials(
        network,
        lambda prediction, target: (prediction - target).abs().mean(),
        lambda epoch: batches([1.0, 3.0, 5.0], [7.0]),  # |x| is 4 in the mean, not (3 + 7) / 2
        lambda epoch: batches([2.0], [0.5, 0.5]),  # 1, not (2 + 0.5) / 2
        torch.optim.SGD,
    )
    losses = trials.copy(heads).losses()
    assert_close(losses.train, torch.tensor([24.0, 4.0, 4.0]))
    assert_close(losses.valid, torch.tensor([6.0, 1.0, 1.0]))


def test_losses_are_those_of_eval_mode():
    network, heads = make_late(dropout=0.9)
    trials = make_trials(network, size=12)
    found = trials.copy(heads).losses().train[-1]
    assert_close(found, cross_entropy(network.eval()(TRAIN[0]), TRAIN[1]).detach())


def test_a_copy_drops_the_hooks_of_a_balancer_and_keeps_others():
    network, heads = make_late()
    seen = []
    network.fusion.register_forward_hook(lambda *call: seen.append(1))
    cggm = make_cggm(heads).bind(network)
    cggm.binding.on_output(network, lambda output: pytest.fail("the copy called a balancer"))
    twin = unhooked_copy(network)
    assert sum(len(m._forward_hooks) for m in twin.modules()) == 1
    twin(TRAIN[0])
    assert seen == [1]
    with pytest.raises(RuntimeError, match="none was seen"):
        cggm(torch.zeros(12, 4), TRAIN[1])


def test_a_bound_network_trains_copies_as_an_unbound_one():
    ends = []
    for bind in (False, True):
        network, heads = make_late()
        if bind:
            Balancer(cross_entropy).bind(network)
        trial = make_trials(network).copy(heads)
        trial.fit(only(0, 1, 2, 3), 1)
        ends.append(trial.network.state_dict())
    assert same(ends)


class Ramp(torch.optim.lr_scheduler.LambdaLR):
    """A rate that is 0.1, 0.2, 0.3 and so on in the steps of an optimizer at 0.1."""

    def __init__(self, optimizer, epochs):
        super().__init__(optimizer, lambda step: step + 1.0)


def test_a_scheduled_copy_learns_at_the_rate_of_each_step():
    network, heads = make_late()
    trials = make_trials(network)
    trials.course = Course(1, Ramp)
    plain, scheduled = trials.copy(heads), trials.copy(heads)
    plain.fit(only(0, 1, 2), 1)
    scheduled.fit(only(0, 1, 2), 1, scheduled=True)
    by_hand = copy.deepcopy(network.encoders["text"]), copy.deepcopy(heads["text"])
    assert len(parts(TRAIN, 4)) == 3
    for lr, (inputs, target) in zip((0.1, 0.2, 0.3), parts(TRAIN, 4), strict=True):
        optimizer = torch.optim.SGD([p for m in by_hand for p in m.parameters()], lr=lr)
        optimizer.zero_grad()
        cross_entropy(by_hand[1](by_hand[0](inputs[:, NAMES.index("text")])), target).backward()
        optimizer.step()
    for ours, expected in zip(
        scheduled.encoders["text"].parameters(), by_hand[0].parameters(), strict=True
    ):
        assert_close(ours, expected)
    assert not same([plain.network.state_dict(), scheduled.network.state_dict()])


def test_the_rate_of_each_modality_falls_on_its_own_plateau():
    network, heads = Given({"a": 1.0, "b": 1.0}), {"a": Factor(1.0), "b": Factor(1.0)}
    schedules = []

    def plateau(optimizer, epochs):
        schedules.append(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0))
        return schedules[-1]

    # modality a has an input of 0 and learns nothing: 0 is its loss in every epoch; b improves
    held_out = [(torch.tensor([[0.0, 1.0]]), torch.tensor([0.0]))]
    trials = Trials(
        network,
        lambda prediction, target: (prediction - target).square().mean(),
        lambda epoch: held_out,
        lambda epoch: held_out,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        course=Course(2, plateau),
    )
    trials.copy(heads).fit(torch.tensor([1.0, 1.0, 0.0]), 2, scheduled=True)
    assert [s.optimizer.param_groups[0]["lr"] for s in schedules] == [pytest.approx(0.01), 0.1]


def test_losses_of_the_training_data_are_of_what_is_judged():
    network, heads = make_late()
    trials = make_trials(network)
    augmented = trials.copy(heads).losses()
    trials.judged = trials.valid
    losses = trials.copy(heads).losses()
    assert torch.equal(losses.train, losses.valid)
    assert not torch.equal(augmented.train, losses.train)


def test_heads_are_scored_on_held_out_data_whatever_the_batches():
    network, heads = make_late(dropout=0.9)
    scores = make_trials(network, size=2).score(heads, accuracy)
    inputs, target = VALID
    network.eval()
    for name, score, own in zip(NAMES, scores, inputs.unbind(1), strict=True):
        said = heads[name](network.encoders[name](own)).argmax(1)
        assert_close(score, (said == target).float().mean())
    assert len(set(scores.tolist())) > 1
