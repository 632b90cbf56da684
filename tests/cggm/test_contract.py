"""What every method promises, held for each public class of ``cggm.methods``."""

import copy
import io

import pytest
import torch
from torch import nn

from cggm import methods
from cggm.balancer import Balancer
from cggm.methods.build import build_balancer
from cggm.trials import Trials
from tests.cggm.networks import (
    NAMES,
    LinearHead,
    accuracy,
    late_batch,
    make_late,
    make_late_fused,
)

# the setting of each method that equals joint training; a method without a row fails
NEUTRAL = {
    "AGM": {"alpha": 0.0},
    "Balancer": {},
    "CGGM": {"rho": None, "direction": None},
    "ConstantFactors": {"factors": 1.0},
    "GradientBlending": {"weights": {"fused": 1.0}},
    "Greedy": {"epsilon": None},
    "MMPareto": {"weight": 0.0},
    "ModalityDropout": {"p": 0.0},
    "ModalityLearningRates": {"strategy": "keep", "rates": 1.0},
    "OGM": {"alpha": 0.0},
    "OPM": {"q_base": 0.0},
    "PMR": {"alpha": 0.0, "mu": 0.0},
    "QMF": {"unimodal": 0.0, "lam": 0.0},
    "RandomFactors": {"terms": [1.0]},
    "ReconBoost": {"epochs_per_stage": 0},
    "UnimodalEnsemble": {"joint": 1.0},
    "UnimodalLosses": {"weight": 0.0},
    "UnimodalTeacher": {"weight": 0.0},
}
# how the network of a method fuses late; the others' fuse features
RULES = {"QMF": "energy", "ReconBoost": "sum", "UnimodalEnsemble": "probabilities"}
BATCHES = [late_batch(seed=seed) for seed in range(4)]
every_method = pytest.mark.parametrize("name", methods.__all__)


def names_of(count):
    return [f"modality {chr(97 + i)}" for i in range(count)]


def make(name, names=NAMES, seed=0):
    if name in RULES:
        return make_late_fused(names, seed, RULES[name])
    return make_late(names, seed)[0]


def build(name, names, **settings):
    torch.manual_seed(1)
    batches = [late_batch(names=names, seed=5)]
    trials = Trials(
        make_late(names)[0],
        nn.CrossEntropyLoss(),
        lambda epoch: batches,
        lambda epoch: batches,
        lambda p: torch.optim.SGD(p, lr=0.1),
    )
    parts = {
        "task_loss": nn.CrossEntropyLoss,
        "heads": lambda: {n: LinearHead() for n in names},
        "score": lambda: accuracy,
        "head_optimizer": lambda: lambda p: torch.optim.Adam(p, lr=0.01),
        "samples": lambda: 16,
        "trials": lambda: trials,
    }
    return build_balancer(name, settings, parts)


def train(network, criterion, batches, optimizer=None, accumulation=1):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    balances = isinstance(criterion, Balancer)
    if balances:
        criterion.start_epoch(1)
    for index, (inputs, target) in enumerate(batches):
        if index % accumulation == 0:
            optimizer.zero_grad()
        if balances:
            criterion.identify(torch.arange(len(target)))
        loss = criterion(network(inputs), target)
        (loss / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
        losses.append(loss.detach())
    return losses


@every_method
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_trains_with_finite_losses(name, count):
    names = names_of(count)
    network = make(name, names)
    before = copy.deepcopy(network.state_dict())
    batches = [late_batch(names=names, seed=seed) for seed in range(4)]
    losses = train(network, build(name, names).bind(network), batches)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses)
    assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())


@every_method
def test_neutral_setting_is_joint_training(name):
    network = make(name)
    joint = copy.deepcopy(network)
    train(network, build(name, list(network.encoders), **NEUTRAL[name]).bind(network), BATCHES)
    train(joint, nn.CrossEntropyLoss(), BATCHES)
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        assert torch.equal(p, q)


@every_method
def test_leaves_no_trace(name):
    network = make(name)
    keys = list(network.state_dict())
    balancer = build(name, list(network.encoders)).bind(network)
    train(network, balancer, BATCHES)
    assert list(network.state_dict()) == keys
    balancer.unbind()
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())


@every_method
def test_state_survives_a_checkpoint(name):
    network = make(name)
    balancer = build(name, list(network.encoders)).bind(network)
    train(network, balancer, BATCHES[:2])
    file = io.BytesIO()
    torch.save([network.state_dict(), balancer.state_dict()], file)
    whole = train(network, balancer, BATCHES[2:])
    file.seek(0)
    again = make(name, seed=5)
    restored = build(name, list(again.encoders)).bind(again)
    for part, state in zip((again, restored), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert all(
        torch.equal(a, b) for a, b in zip(whole, train(again, restored, BATCHES[2:]), strict=True)
    )


@every_method
def test_commits_once_per_accumulation_window(name):
    network = make(name)
    balancer = build(name, list(network.encoders)).bind(network)
    commits = []
    commit = balancer.commit
    balancer.commit = lambda: (commits.append(balancer.micro_batches), commit())
    train(network, balancer, BATCHES, accumulation=2)
    assert commits == [2, 2]


@every_method
def test_evaluation_is_the_task_loss(name):
    network = make(name)
    balancer = build(name, list(network.encoders)).bind(network)
    network.eval()
    inputs, target = BATCHES[0]
    prediction = network(inputs)
    expected = nn.functional.cross_entropy(prediction, target)
    assert torch.equal(balancer(prediction, target), expected)


def test_unknown_names_and_settings_are_suggested():
    from cggm.errors import UserError

    with pytest.raises(UserError, match=r"Unknown method 'CGM'.*Available: .*CGGM"):
        build("CGM", names_of(2))
    with pytest.raises(UserError, match=r"Unknown setting 'rh'.*Did you mean rho"):
        build("CGGM", names_of(2), rh=1.0)
    with pytest.raises(UserError, match=r"Settings of CGGM: Expected `rho`.*got -1"):
        build("CGGM", names_of(2), rho=-1)
