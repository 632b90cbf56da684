"""Trials: the original stays untouched, branches train as if alone, losses are means by sample."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from cggm import Balancer
from cggm.trials import Trials, unhooked_copy
from tests.cggm.networks import NAMES, late_batch, make_cggm, make_late
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
