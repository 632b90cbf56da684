"""Chains: a chain of one is its method, pairs keep their promises, and what cannot be combined."""

import copy
import io
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm import CGGM, Chain
from cggm.errors import MethodRefusal, UserError
from cggm.methods import ModalityDropout, UnimodalLosses, build_balancer, method_names
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import (
    acting,
    batches_of,
    build,
    make,
    near,
    same,
    train,
)
from tests.cggm.networks import NAMES, accuracy, late_batch, make_late
from tests.quantifiers import every, none

cross_entropy = nn.functional.cross_entropy
CHAINED = ["ModalityDropout", "UnimodalLosses", "CGGM", "OGM", "MMPareto", "OPM", "ConstantFactors"]
PAIRS = [(a, b) for a, b in product(CHAINED, CHAINED) if a != b]
SERVED = [
    n
    for n in method_names()
    if not (CONTRACTS[n].rules or CONTRACTS[n].gated or CONTRACTS[n].task != "classification")
]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def settings_of(name):
    return CONTRACTS[name].settings


def chain(network, *names):
    return Chain(*(build(n, network, **settings_of(n)) for n in names)).bind(network)


@pytest.mark.parametrize("name", SERVED)
def test_a_chain_of_one_is_the_method(name):
    network, other = make(name), make(name)
    rows = train(network, chain(network, name), batches_of())
    alone = train(other, acting(name, other), batches_of())
    assert same(network, other)
    for row, expected in zip(rows, alone, strict=True):
        assert every(torch.equal(row[key].nan_to_num(), expected[key].nan_to_num()) for key in row)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pairs_train_and_resume(pair):
    network = make("CGGM")
    balancer = chain(network, *pair)
    batches = batches_of()
    rows = train(network, balancer, batches[:3], epochs=(1, 1, 2))
    assert every(row["loss"].isfinite() for row in rows)
    file = io.BytesIO()
    torch.save([network.state_dict(), balancer.state_dict()], file)
    whole = train(network, balancer, batches[3:], epochs=(2, 3, 4), announced=2)
    file.seek(0)
    again = make("CGGM", seed=5)
    resumed = chain(again, *pair)
    for part, state in zip((again, resumed), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    rest = train(again, resumed, batches[3:], epochs=(2, 3, 4))
    assert every(torch.equal(a["loss"], b["loss"]) for a, b in zip(rest, whole, strict=True))
    assert same(again, network)
    hooks = [h for m in network.modules() for h in m._forward_hooks]
    balancer.unbind()
    assert len(hooks) > sum(len(m._forward_hooks) for m in network.modules())
    assert none(m.bound for m in balancer.parts)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_pairs_commit_once_per_window(pair):
    network = make("CGGM")
    balancer = chain(network, *pair)
    train(network, balancer, batches_of(), parts=2)
    assert [m.clock.steps for m in (balancer, *balancer.parts)] == [6, 6, 6]
    assert [m.calls for m in (balancer, *balancer.parts)] == [12, 12, 12]


@pytest.mark.parametrize("name", ["UnimodalLosses", "CGGM", "OGM", "MMPareto", "OPM"])
def test_neutral_partners_change_nothing(name):
    network, other = make(name), make(name)
    parts = [build(name, network, **settings_of(name)), build("ModalityDropout", network, p=0.0)]
    train(network, Chain(*parts).bind(network), batches_of())
    train(other, acting(name, other), batches_of())
    assert near(network.state_dict(), other.state_dict())


def test_losses_add_and_factors_multiply():
    network = make("CGGM")
    first = build("ConstantFactors", network, factors=0.5)
    second = build("OGM", network, alpha=0.8)
    method = Chain(first, second).bind(network)
    inputs, target = batches_of()[0]
    prediction = network(inputs)
    loss = method(prediction, target)
    assert torch.equal(loss, cross_entropy(prediction, target))
    expected = 0.5 * second.readings["term"]
    assert_close(method.scales(None), expected)
    plain = torch.autograd.grad(loss, network.encoders["text"].parameters(), retain_graph=True)
    method.unbind()
    joint = cross_entropy(network(inputs), target)
    unscaled = torch.autograd.grad(joint, network.encoders["text"].parameters())
    assert_close(plain[0], unscaled[0] * expected[0])
    assert set(method.readings) >= {"term", "term_ogm", "score"}


def test_losses_of_heads_are_added_to_the_direction_loss_and_heads_learn_once():
    network, heads = make_late()
    parts = {}
    for key, names in (("both", (0, 1)), ("first", (0,)), ("second", (1,))):
        net, own = copy.deepcopy(network), copy.deepcopy(heads)
        methods = [
            UnimodalLosses(copy.deepcopy(own), cross_entropy, accuracy, head_optimizer=sgd),
            CGGM(own, cross_entropy, accuracy, rho=None, lam=0.3, head_optimizer=sgd),
        ]
        method = Chain(*(methods[k] for k in names)).bind(net)
        inputs, target = late_batch()
        loss = method(net(inputs), target)
        loss.backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        parts[key] = (loss.detach(), cross_entropy(network(inputs), target), method.heads)
    total, task, learned = parts["both"]
    assert_close(total - task, sum(parts[k][0] - task for k in ("first", "second")))
    for name in NAMES:
        pairs = zip(learned[name].parameters(), parts["first"][2][name].parameters(), strict=True)
        assert every(torch.equal(p, q) for p, q in pairs)


def test_dropout_comes_before_the_fusion_and_not_before_the_heads():
    network, heads = make_late()
    drop = ModalityDropout(cross_entropy, p=0.5)
    losses = UnimodalLosses(heads, cross_entropy, accuracy, head_optimizer=sgd)
    method = Chain(drop, losses).bind(network)
    inputs, target = late_batch()
    method(network(inputs), target)
    head_losses = method.readings["head_loss"]
    method.unbind()
    features = {n: network.encoders[n](inputs[:, k]) for k, n in enumerate(NAMES)}
    expected = [cross_entropy(heads[n](features[n]), target) for n in NAMES]
    assert_close(head_losses, torch.stack(expected))


def test_what_cannot_be_combined_says_so():
    network = make("CGGM")
    pair = [build("OPM", network), build("AGM", network)]
    with pytest.raises(ValueError, match=r"its own loss in place .* got OPM and AGM"):
        Chain(*pair)
    with pytest.raises(ValueError, match="one and more methods that are neither bound"):
        Chain()
    with pytest.raises(ValueError, match="one and more methods that are neither bound"):
        Chain(acting("CGGM", network))
    late = [build("CGGM", network), build("QMF", network)]
    other = make("CGGM")
    before = sum(len(m._forward_hooks) for m in other.modules())
    with pytest.raises(ValueError, match="late-fusion network"):
        Chain(*late).bind(other)
    assert sum(len(m._forward_hooks) for m in other.modules()) == before
    assert none(m.bound for m in late)


def test_absent_modalities_need_all_methods_to_serve():
    network = make("CGGM")
    method = chain(network, "CGGM", "PMR")
    method.start_epoch(1)
    method.present({"audio": False})
    inputs, target = batches_of()[0]
    with pytest.raises(ValueError, match="Chain"):
        method(network(inputs), target)


def test_chains_are_built_by_their_names():
    _, heads = make_late()
    parts = {
        "task_loss": lambda: cross_entropy,
        "heads": lambda: copy.deepcopy(heads),
        "score": lambda: accuracy,
    }
    settings = {"UnimodalLosses": {"weight": 0.5}, "CGGM": {"rho": 1.0}}
    method = build_balancer("ModalityDropout+UnimodalLosses+CGGM", settings, parts)
    assert [type(m).__name__ for m in method.parts] == ["ModalityDropout", "UnimodalLosses", "CGGM"]
    assert (method.parts[1].weight, method.parts[2].rho) == (0.5, 1.0)
    with pytest.raises(UserError, match="each method of the chain CGGM\\+CGGM once"):
        build_balancer("CGGM+CGGM", {}, parts)
    with pytest.raises(UserError, match="settings of OGM"):
        build_balancer("ModalityDropout+CGGM", {"OGM": {}}, parts)
    with pytest.raises(MethodRefusal, match="OPM and ReconBoost"):
        build_balancer("OPM+ReconBoost", {}, parts)
