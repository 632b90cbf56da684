"""Joint training with unimodal losses: its loss, its gradients, and who learns from what."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods.unimodal_losses import UnimodalLosses
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    ConvolutionalHead,
    Late,
    LinearHead,
    accuracy,
    late_batch,
    make_late,
)
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(4)]
cross_entropy = nn.functional.cross_entropy


def make(heads, weight=1.0, task_loss=cross_entropy, score=accuracy):
    return UnimodalLosses(
        heads, task_loss, score, weight=weight, head_optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def train(network, criterion, batches, accumulation=1):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for index, (inputs, target) in enumerate(batches):
        (criterion(network(inputs), target) / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def by_hand(network, heads, batch, weight):
    inputs, target = batch
    total = cross_entropy(network(inputs), target)
    for index, name in enumerate(network.encoders):
        alone = heads[name](network.encoders[name](inputs[:, index]))
        total = total + weight * cross_entropy(alone, target)
    return total


class Given(nn.Module):
    """A layer of given weights without bias, as an encoder or as a head."""

    def __init__(self, rows):
        super().__init__()
        self.output_layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        self.output_layer.weight.data = torch.tensor(rows)

    def forward(self, features):
        return self.output_layer(features)


def test_one_step_on_hand_computed_numbers():
    encoders = {"a": Given([[2.0]]), "b": Given([[1.0]])}
    fused = nn.Linear(1, 1, bias=False)
    fused.weight.data.fill_(1.0)
    heads = {"a": Given([[3.0]]), "b": Given([[-1.0]])}

    def squared(prediction, target):
        return ((prediction - target) ** 2).mean()

    method = make(heads, 0.5, squared, lambda p, t: -squared(p, t))
    method.bind(encoders=encoders, output_layer=fused)
    one = torch.ones(1, 1)
    loss = method(fused(encoders["a"](one) + encoders["b"](one)), torch.ones(1, 1))
    # fused 2 + 1 = 3, so (3 - 1)^2; heads 3 * 2 = 6 and -1 * 1 = -1, so 5^2 and (-2)^2
    assert loss.item() == pytest.approx(4 + 0.5 * (25 + 4))
    assert method.readings["head_loss"].tolist() == [25, 4]
    loss.backward()
    # 2 * 2 from the fused loss each; 0.5 * 2 * 5 * 3 and 0.5 * 2 * (-2) * (-1) from the heads'
    assert encoders["a"].output_layer.weight.grad.item() == pytest.approx(4 + 15)
    assert encoders["b"].output_layer.weight.grad.item() == pytest.approx(4 + 2)
    assert fused.weight.grad.item() == pytest.approx(2 * 2 * 3)
    # the heads' own losses, without the weight: 2 * 5 * 2 and 2 * (-2) * 1
    assert method.heads.window["gradient/a.output_layer.weight"].item() == pytest.approx(20)
    assert method.heads.window["gradient/b.output_layer.weight"].item() == pytest.approx(-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_network_gets_the_gradient_of_the_stated_loss(count):
    names = [f"modality {chr(97 + i)}" for i in range(count)]
    torch.manual_seed(0)
    network, heads = Late(names), {n: LinearHead() for n in names}
    other, others = copy.deepcopy((network, heads))
    batch = late_batch(names=names)
    loss = make(heads, 0.7).bind(network)(network(batch[0]), batch[1])
    expected = by_hand(other, others, batch, 0.7)
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_neutral_weight_equals_joint_training_bit_for_bit_while_heads_learn():
    network, heads = make_late(dropout=0.3)
    joint, start = copy.deepcopy((network, heads))
    torch.manual_seed(1)
    train(network, make(heads, 0.0).bind(network), BATCHES)
    torch.manual_seed(1)
    train(joint, cross_entropy, BATCHES)
    assert equal(network, joint)
    assert none(equal(heads[n], start[n]) for n in NAMES)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_networks_backward_pass_adds_nothing_to_the_heads(weight):
    network, heads = make_late()
    method = make(heads, weight).bind(network)
    loss = method(network(BATCHES[0][0]), BATCHES[0][1])
    assert every(p.grad is None for p in network.parameters())
    before = {k: g.clone() for k, g in method.heads.window.named("gradient/").items()}
    loss.backward()
    after = method.heads.window.named("gradient/")
    assert every(torch.equal(after[key], gradient) for key, gradient in before.items())
    assert len(before) == len(list(method.heads.parameters()))
    assert every(p.grad is None for p in method.heads.parameters())


def test_the_first_step_of_the_heads_does_not_depend_on_the_weight():
    ends = []
    for weight in (0.0, 3.0):
        network, heads = make_late()
        train(network, make(heads, weight).bind(network), BATCHES[:1])
        ends.append(nn.ModuleDict(heads))
    assert equal(*ends)


def test_accumulation_equals_the_whole_batch():
    ends = []
    inputs, target = BATCHES[0]
    for parts in (1, 4):
        network, heads = make_late()
        method = make(heads).bind(network)
        batches = zip(inputs.chunk(parts), target.chunk(parts), strict=True)
        train(network, method, list(batches), accumulation=parts)
        ends.append([*network.parameters(), *method.parameters(), *method.buffers()])
    for p, q in zip(*ends, strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_batch_statistics_move_once_per_call():
    network, _ = make_late()
    heads = {n: LinearHead() for n in NAMES}
    for head in heads.values():
        head.norm = nn.BatchNorm1d(6)
        head.forward = lambda x, h=head: h.output_layer(h.norm(x))
    train(network, make(heads).bind(network), BATCHES)
    assert [h.norm.num_batches_tracked.item() for h in heads.values()] == [4, 4, 4]


def test_nested_features_and_dense_targets():
    torch.manual_seed(0)
    network, heads = Convolutional(), {n: ConvolutionalHead() for n in NAMES}
    method = make(heads, score=lambda p, t: (p.argmax(1) == t).float().mean()).bind(network)
    images, target = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    loss = method(network(images), target)
    loss.backward()
    alone = method.readings["head_loss"]
    assert_close(loss, cross_entropy(network(images), target) + alone.sum())
    assert every(p.grad is not None for p in network.parameters())


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
    by_hand(full, others, BATCHES[0], 1.0).backward()
    scale = scaler.get_scale()
    for p, q in zip(network.parameters(), full.parameters(), strict=True):
        assert_close(p.grad / scale, q.grad, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_wrong_weight_is_named(weight):
    with pytest.raises(ValueError, match="`weight` not negative"):
        make({n: LinearHead() for n in NAMES}, weight)


def test_heads_that_follow_learn_at_the_rate_of_the_network():
    network, heads = make_late()
    method = make(heads).bind(network)
    method.heads_follow = True
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    for rate in (0.3, 0.02):
        optimizer.param_groups[0]["lr"] = rate
        inputs, target = late_batch()
        method(network(inputs), target).backward()
        optimizer.step()
        assert {group["lr"] for group in method.heads.optimizer.param_groups} == {rate}
