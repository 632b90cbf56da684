"""What every method promises, held for each public class of ``cggm.methods``."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers
from torch.testing import assert_close

from cggm.errors import UserError
from cggm.methods import method_names
from cggm.tensors import map_tensors
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import (
    TASKS,
    acting,
    additive,
    batches_for,
    build,
    make,
    names_of,
    near,
    neutral,
    same,
    train,
)
from tests.cggm.networks import NAMES
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every

MOVED = ("video", "text", "audio")
every_method = pytest.mark.parametrize("name", method_names())


def hooks_of(network):
    """Number of hooks on modules, on parameters and on all optimizers."""
    modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held = [getattr(module, kind) for module in network.modules() for kind in modules]
    held += [p._backward_hooks or {} for p in network.parameters()]
    held += [p._post_accumulate_grad_hooks or {} for p in network.parameters()]
    held += [optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks]
    return sum(map(len, held))


def test_every_method_has_a_row():
    assert list(CONTRACTS) == sorted(method_names())


@every_method
def test_settings_under_which_it_is_tried_do_act(name):
    network = make(name)
    joint = copy.deepcopy(network)
    train(network, acting(name, network), batches_for(name))
    train(joint, neutral(name, joint), batches_for(name))
    assert same(network, joint) != CONTRACTS[name].acts


@every_method
def test_leaves_no_hook_and_no_key(name):
    network = make(name)
    keys, before = list(network.state_dict()), hooks_of(network)
    balancer = acting(name, network)
    assert hooks_of(network) > before
    train(network, balancer, batches_for(name))
    assert list(network.state_dict()) == keys
    balancer.unbind()
    assert hooks_of(network) == before


@every_method
def test_modalities_that_change_places_take_their_coefficients_along(name):
    contract = CONTRACTS[name]
    network, moved = additive(name), additive(name, MOVED)
    moved.load_state_dict(network.state_dict())
    head = TASKS[contract.task].head
    heads = nn.ModuleDict({n: head() for n in NAMES})
    order = [NAMES.index(n) for n in MOVED]
    batches = batches_for(name)
    swapped = [(inputs[:, order], target) for inputs, target in batches]
    rows, others = (
        train(
            net,
            acting(name, net, heads=heads, trial_batches=seen[:2], **contract.named),
            seen if contract.drawn is None else seen[:1],
        )
        for net, seen in ((network, batches), (moved, swapped))
    )
    for row, other in zip(rows, others, strict=True):
        for key in set(row) - set(contract.drawn or ()) - {"loss"}:
            assert row[key].shape == (3,), key
            expected = row[key] if contract.ordered else row[key][order]
            assert_close(other[key], expected, rtol=1e-4, atol=1e-5, msg=key)
    by_place = contract.drawn is not None or contract.ordered
    assert by_place or near(moved.state_dict(), network.state_dict())


@every_method
@pytest.mark.parametrize(
    ("dtype", "around"),
    [(torch.bfloat16, "loss, too"), (torch.float16, "loss, too"), (torch.bfloat16, "network")],
)
def test_autocast_leaves_coefficients_and_state_in_full_precision(name, dtype, around):
    network, full = make(name), make(name)
    balancer = acting(name, network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    exact = train(full, acting(name, full), batches_for(name), epochs=(1, 1, 2))
    for index, other in enumerate(exact):
        if index != 1:
            balancer.start_epoch(index // 2 + 1)
        inputs, target = batches_for(name)[index]
        optimizer.zero_grad()
        balancer.identify(torch.arange(len(target)))
        with torch.autocast("cpu", dtype):
            prediction = network(inputs)
            loss = balancer(prediction, target) if around == "loss, too" else None
        if loss is None:  # as Accelerate has it
            loss = balancer(map_tensors(torch.Tensor.float, prediction), target)
        loss.backward()
        readings = dict(balancer.readings)  # to which MMPareto adds as the optimizer steps
        optimizer.step()
        assert loss.isfinite()
        assert readings.keys() == other.keys() - {"loss"}
        for key, value in readings.items():
            assert value.dtype == other[key].dtype, key
            assert torch.equal(value.isfinite(), other[key].isfinite()), key
    fresh = acting(name, make(name)).state_dict()
    for key, value in balancer.state_dict().items():
        assert not isinstance(value, torch.Tensor) or value.dtype == fresh[key].dtype, key


@every_method
def test_commits_once_per_window_and_says_whether_windows_equal_batches(name):
    whole, cut = make(name), make(name)
    balancer = acting(name, cut)
    commits, commit = [], balancer.commit
    balancer.commit = lambda: (commits.append(balancer.micro_batches), commit())
    rows = train(cut, balancer, batches_for(name), parts=2)
    train(whole, acting(name, whole), batches_for(name))
    assert commits == [2] * 6
    assert every(row["loss"].isfinite() for row in rows)
    assert near(cut.state_dict(), whole.state_dict()) == (not CONTRACTS[name].windows)


@every_method
def test_a_step_does_not_wait_for_the_device(name):
    network, (batch, *_) = make(name), batches_for(name)
    balancer = acting(name, network)
    train(network, balancer, [batch], epochs=[1])
    balancer.identify(torch.arange(16))
    with NoSynchronization():
        balancer(network(batch[0]), batch[1]).backward()


@every_method
def test_evaluation_is_the_task_loss(name):
    network = make(name)
    balancer = acting(name, network)
    inputs, target = batches_for(name)[0]
    with torch.no_grad():
        assert balancer(network(inputs), target) == balancer.task_loss(network(inputs), target)
    network.eval()
    prediction = network(inputs)
    assert torch.equal(
        balancer(prediction, target), nn.functional.cross_entropy(prediction, target)
    )
    assert balancer.calls == 0


@every_method
def test_frozen_encoders_are_refused(name):
    network = make(name)
    network.encoders["audio"].requires_grad_(False)
    before = hooks_of(network)
    with pytest.raises(ValueError, match="'audio' to have trainable parameters"):
        acting(name, network)
    assert hooks_of(network) == before


@every_method
def test_a_call_without_a_forward_pass_through_the_network_is_an_error(name):
    network = make(name)
    balancer = acting(name, network)
    balancer.start_epoch(1)
    inputs, target = batches_for(name)[0]
    prediction = copy.deepcopy(network)(inputs)
    with pytest.raises(RuntimeError, match="Expected a training forward pass through"):
        balancer(prediction, target)


def test_unknown_names_and_settings_are_suggested():
    network = make("CGGM", names=names_of(2))
    with pytest.raises(UserError, match=r"Unknown method 'CGM'.*Available: .*CGGM"):
        build("CGM", network, "classification")
    with pytest.raises(UserError, match=r"Unknown setting 'rh'.*Did you mean rho"):
        build("CGGM", network, rh=1.0)
    with pytest.raises(UserError, match=r"Settings of CGGM: Expected `rho`.*got -1"):
        build("CGGM", network, rho=-1)
