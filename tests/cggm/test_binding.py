"""What may be bound, what is refused, and that nothing is left behind."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizer_module
from torch.testing import assert_close

from cggm import Balancer
from cggm.tensors import map_tensors
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    ConvolutionalHead,
    Late,
    LinearHead,
    late_batch,
    make_cggm,
    make_late,
)
from tests.quantifiers import every


def hooks_on(network):
    return (
        sum(len(m._forward_hooks) + len(m._backward_hooks) for m in network.modules())
        + len(optimizer_module._global_optimizer_pre_hooks)
        + len(optimizer_module._global_optimizer_post_hooks)
    )


def test_unbinding_leaves_no_hook():
    network, heads = make_late()
    before = hooks_on(network)
    balancer = make_cggm(heads).bind(network)
    assert hooks_on(network) > before
    balancer.unbind()
    assert hooks_on(network) == before
    inputs, target = late_batch()
    loss = network(inputs).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="to be bound"):
        balancer(network(inputs), target)


def test_a_refused_network_keeps_no_hook():
    network, heads = make_late()
    before = hooks_on(network)
    heads["text"] = LinearHead(classes=5)
    with pytest.raises(ValueError, match=r"head 'text'.*\(4, 6\).*\(5, 6\)"):
        make_cggm(heads).bind(network)
    assert hooks_on(network) == before


def test_state_dict_of_the_network_never_contains_a_head():
    network, heads = make_late()
    before = set(network.state_dict())
    balancer = make_cggm(heads).bind(network)
    inputs, target = late_batch()
    balancer(network(inputs), target).backward()
    assert set(network.state_dict()) == before
    assert every(p is not q for p in network.parameters() for q in balancer.parameters())


def freeze(network):
    network.encoders["audio"].requires_grad_(False)


def share(network):
    network.encoders["audio"][0].weight = network.encoders["text"][0].weight


def empty(network):
    network.encoders = nn.ModuleDict()


def widen(network):
    network.output_layer = nn.Conv2d(6, 4, 3)


def stride(network):
    network.output_layer = nn.Conv2d(6, 4, 1, stride=2)


def not_a_layer(network):
    network.output_layer = nn.Sequential(nn.Linear(6, 4))


def inside(network):
    network.output_layer = network.encoders["text"][2]


def nameless(network):
    del network.encoders


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (freeze, "encoder 'audio' to have trainable parameters"),
        (share, "share no parameter.*'text' and 'audio'"),
        (empty, "at least one encoder"),
        (widen, "kernel 1"),
        (stride, "stride 1"),
        (not_a_layer, "but got Sequential"),
        (inside, "'text' and 'the output layer'"),
        (nameless, "attribute `encoders`.*Pass `encoders=`"),
    ],
)
def test_refusals(spoil, message):
    network, _ = make_late()
    spoil(network)
    with pytest.raises(ValueError, match=message):
        Balancer(nn.functional.cross_entropy).bind(network)


def test_refuses_heads_of_other_names_or_order():
    network, heads = make_late()
    for names in (NAMES[:2], NAMES[::-1], ("text", "audio", "depth")):
        with pytest.raises(ValueError, match="one head per encoder"):
            make_cggm({n: LinearHead() for n in names}).bind(network)
    with pytest.raises(ValueError, match="head 'text' to have an attribute `output_layer`"):
        make_cggm(heads | {"text": nn.Linear(6, 4)})


def test_refuses_data_parallel_and_a_second_binding():
    network, heads = make_late()
    balancer = make_cggm(heads)
    with pytest.raises(ValueError, match="Use DistributedDataParallel"):
        balancer.bind(nn.DataParallel(network))
    balancer.bind(network)
    with pytest.raises(RuntimeError, match="unbound balancer"):
        balancer.bind(network)


def test_criterion_without_a_forward_pass_names_what_did_not_run():
    network, heads = make_late()
    balancer = make_cggm(heads).bind(network)
    inputs, target = late_batch()
    prediction = network(inputs)
    balancer(prediction, target)
    with pytest.raises(RuntimeError, match=r"encoders \['text', 'audio', 'video'\].*none was seen"):
        balancer(prediction, target)


def test_silent_in_eval_mode_and_without_gradients():
    network, heads = make_late()
    balancer = make_cggm(heads).bind(network)
    inputs, target = late_batch()
    plain = nn.functional.cross_entropy(network(inputs), target)
    with torch.no_grad():
        assert_close(balancer(network(inputs), target), plain)
    network.eval()
    assert_close(balancer(network(inputs), target), plain)
    assert balancer.calls == 0


class Pair(NamedTuple):
    """A named tuple of features."""

    first: torch.Tensor
    second: torch.Tensor


def tensors_in(features):
    found = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, features)
    return found


CONTAINERS = {
    "tuple": lambda x: (x, x * 2),
    "list": lambda x: [x, [x * 2]],
    "dict": lambda x: {"a": x, "b": (x * 2,)},
    "named tuple": lambda x: Pair(x, x * 2),
}


class Contained(nn.Module):
    """An encoder that packs its features, and its unpacking."""

    def __init__(self, inner, pack):
        super().__init__()
        self.inner, self.pack = inner, pack

    def forward(self, x):
        return self.pack(self.inner(x))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_features_in_containers_are_scaled_once(kind):
    class Network(Late):
        def forward(self, inputs):
            parts = [
                sum(tensors_in(e(x)))
                for e, x in zip(self.encoders.values(), inputs.unbind(1), strict=True)
            ]
            return self.output_layer(self.fusion(torch.cat(parts, -1)))

    class Head(LinearHead):
        def forward(self, features):
            return self.output_layer(sum(tensors_in(features)))

    torch.manual_seed(0)
    network = Network()
    for name in NAMES:
        network.encoders[name] = Contained(network.encoders[name], CONTAINERS[kind])
    assert_scaled(network, {n: Head() for n in NAMES}, *late_batch())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutional_last_layers_and_skip_features(dims):
    torch.manual_seed(0)
    network = Convolutional(dims=dims)
    images = torch.randn(2, 3, *[8] * dims)
    target = torch.randint(0, 3, (2, *[8] * dims))
    assert_scaled(network, {n: ConvolutionalHead(dims) for n in NAMES}, images, target)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_modalities(count):
    names = [f"sensor {chr(97 + i)}" for i in range(count)]
    network, heads = make_late(names)
    assert_scaled(network, heads, *late_batch(names=names))


def test_explicit_encoders_and_output_layer():
    network, heads = make_late()
    other = nn.ModuleDict({"body": network})
    balancer = make_cggm(heads).bind(
        encoders=dict(network.encoders), output_layer=network.output_layer
    )
    inputs, target = late_batch()
    balancer(other["body"](inputs), target).backward()
    assert balancer.binding.names == list(NAMES)


def assert_scaled(network, heads, inputs, target):
    """Every encoder parameter's gradient is B_i times joint training's; the others are equal."""
    joint = copy.deepcopy(network)
    nn.functional.cross_entropy(joint(inputs), target).backward()
    balancer = make_cggm(heads, gain="batch", terms="raw", direction=None, rho=1.3).bind(network)
    balancer(network(inputs), target).backward()
    terms = balancer.readings["term"]
    touched = set()
    for name, term in zip(network.encoders, terms, strict=True):
        ours, theirs = network.encoders[name], joint.encoders[name]
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_close(p.grad, q.grad * term, rtol=1e-5, atol=1e-8)
            assert q.grad.abs().sum() > 0
            touched.add(id(p))
    for p, q in zip(network.parameters(), joint.parameters(), strict=True):
        if id(p) not in touched:
            assert torch.equal(p.grad, q.grad)
    balancer.unbind()
