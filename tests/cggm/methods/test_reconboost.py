"""ReconBoost: turns, losses by hand, branches at rest, and what it refuses."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from cggm.late_fusion import LateFusion
from cggm.methods.reconboost import ReconBoost
from tests.cggm.networks import (
    Convolutional,
    ConvolutionalHead,
    Late,
    LateFused,
    LinearHead,
    encode,
    late_batch,
    make_late,
    make_late_fused,
)
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every, none
from tests.ranks import on_two_ranks

BATCHES = [late_batch(seed=seed) for seed in range(4)]
cross_entropy = nn.functional.cross_entropy
log = math.log


class Given(nn.Module):
    """Each modality's logits are its input."""

    def __init__(self, names="ab", width=2):
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(width, width, bias=False) for n in names})
        for encoder in self.encoders.values():
            encoder.weight.data = torch.eye(width)
        self.output_layer = LateFusion({n: nn.Identity() for n in names}, "sum")

    def forward(self, inputs):
        return self.output_layer.combine(self.output_layer(encode(self, inputs)))


def loss_of(method, network, inputs, target, epoch):
    method.start_epoch(epoch)
    return method(network(inputs), target)


def by_epoch(network, method, optimizer, epochs):
    """One batch per epoch; the losses."""
    losses = []
    for epoch in epochs:
        method.start_epoch(epoch)
        inputs, target = BATCHES[epoch % 4]
        optimizer.zero_grad()
        losses.append(method(network(inputs), target))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


def branch(network, name):
    return [*network.encoders[name].parameters(), *network.output_layer[name].parameters()]


@pytest.fixture
def given():
    """Softmax (3/4, 1/4) of a and (1/2, 1/2) of b, the first class being the right one."""
    inputs = torch.tensor([[[log(3.0), 0.0], [0.0, 0.0]]], requires_grad=True)
    return Given(), inputs, torch.tensor([0])


def test_turns_on_hand_computed_numbers(given):
    network, inputs, target = given
    # CREMA-D's weights of the released code: w1 = 5, w2 = 1, alpha = 0.5
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=1).bind(network)
    losses = [loss_of(method, network, inputs, target, epoch) for epoch in range(1, 8)]
    # agreement: ((3/4 - 1/2)^2 + (1/4 - 1/2)^2) / 2 = 1/16
    first = -(5 - 0.5) * log(0.75) / 2
    second = -(5 - 0.75) * log(0.5) / 2 + 0.5 / 16
    both = -log(0.75)
    expected = [first, both, second, both, first + 0.5 / 16, both, second]
    assert_close(torch.stack(losses), torch.tensor(expected))


def test_published_defaults_train_jointly_in_half_of_the_epochs():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy).bind(network)
    joint = []
    for epoch in range(1, 61):
        method.start_epoch(epoch)
        joint.append(method.active is None)
    assert sum(joint) / 60 == pytest.approx(0.47, abs=0.005)


def test_three_modalities_are_explained_by_the_sum_of_the_others():
    network = Given("abc")
    inputs = torch.tensor([[[0.0, 0.0], [log(2.0), 0.0], [log(4.0), 0.0]]])
    method = ReconBoost(
        cross_entropy, epochs_per_stage=1, rectify_epochs=0, alpha=0.0, w1=1.0
    ).bind(network)
    loss = loss_of(method, network, inputs, torch.tensor([0]), 1)
    # q = 8/9 of the summed logits log(8)
    assert_close(loss, torch.tensor(-(1 - 8 / 9) * log(0.5) / 2))


def test_agreement_has_a_gradient_in_the_active_modality_alone(given):
    network, inputs, target = given
    gradients = []
    for alpha in (0.0, 2.0):
        method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0, alpha=alpha).bind(
            network
        )
        (gradient,) = torch.autograd.grad(loss_of(method, network, inputs, target, 2), inputs)
        gradients.append(gradient[0])
        method.unbind()
    # d MSE / dp = (p - p_prev) = (-1/4, 1/4); through softmax at 1/2: 1/4 (-1/2, 1/2)
    assert_close((gradients[1] - gradients[0])[1], 2 * torch.tensor([-0.125, 0.125]))
    assert (gradients[1][0] == 0).all()


def test_turns_follow_each_other():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=2, rectify_epochs=1).bind(network)
    seen = []
    for epoch in range(1, 12):
        method.start_epoch(epoch)
        seen.append(method.active)
    assert seen == [0, 0, None, 1, 1, None, 2, 2, None, 0, 0]
    loss_of(method, network, *BATCHES[0], epoch=4)
    assert method.readings["term"].tolist() == [0, 1, 0]
    loss_of(method, network, *BATCHES[0], epoch=6)
    assert method.readings["term"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("to_none", [True, False])
def test_modalities_at_rest_do_not_move(to_none):
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=1).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    by_epoch(network, method, optimizer, [4])  # all learn, and have momentum
    before = copy.deepcopy(network)
    optimizer.zero_grad(set_to_none=to_none)
    loss_of(method, network, *BATCHES[0], epoch=3).backward()
    optimizer.step()
    for name in network.encoders:
        pairs = zip(branch(network, name), branch(before, name), strict=True)
        moved = [not torch.equal(p, q) for p, q in pairs]
        assert every(moved) if name == "audio" else none(moved)


def test_neutral_setting_is_joint_training():
    network = make_late_fused(rule="sum")
    joint = copy.deepcopy(network)
    method = ReconBoost(cross_entropy, epochs_per_stage=0).bind(network)
    by_epoch(network, method, torch.optim.Adam(network.parameters()), [1, 2, 3])
    optimizer = torch.optim.Adam(joint.parameters())
    for epoch in (1, 2, 3):
        inputs, target = BATCHES[epoch]
        optimizer.zero_grad()
        cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), joint.parameters(), strict=True)
    )


def test_one_modality_is_joint_training_without_epochs():
    network = make_late_fused("a", rule="sum")
    inputs, target = late_batch(names="a")
    method = ReconBoost(cross_entropy).bind(network)
    prediction = network(inputs)
    assert torch.equal(method(prediction, target), cross_entropy(prediction, target))


def test_segmentation_is_the_mean_over_known_voxels():
    torch.manual_seed(0)
    network = LateFused(Convolutional("ab").encoders, ConvolutionalHead, "sum")
    images, target = torch.randn(2, 2, 8, 8), torch.randint(3, (2, 8, 8))
    target[0, 0] = -100
    alone = list(network.output_layer(encode(network, images[:, :, None])).values())
    voxels, values = (z.movedim(1, -1)[target >= 0] for z in alone), target[target >= 0]
    voxels = torch.stack(list(voxels), 1).detach()
    pointwise, flat = (
        Given("ab", 3),
        ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0, alpha=0.0),
    )
    expected = loss_of(flat.bind(pointwise), pointwise, voxels, values, 2)
    method = ReconBoost(
        lambda p, y: cross_entropy(p, y.reshape(2, 8, 8)),
        epochs_per_stage=1,
        rectify_epochs=0,
        alpha=0.0,
    ).bind(network)
    loss = loss_of(method, network, images, target, 2)
    assert_close(loss, expected)
    assert_close(loss_of(method, network, images, target[:, None], 2), loss)
    loss.backward()
    assert every(p.grad.abs().sum() > 0 for p in branch(network, "b"))
    assert every(p.grad is None for p in branch(network, "a"))


def test_agreement_of_segmentation_is_the_mean_over_voxels():
    torch.manual_seed(0)
    network = LateFused(Convolutional("ab").encoders, ConvolutionalHead, "sum")
    images, target = torch.randn(2, 2, 8, 8), torch.randint(3, (2, 8, 8))
    losses = []
    for alpha in (0.0, 2.0):
        method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0, alpha=alpha).bind(
            network
        )
        losses.append(loss_of(method, network, images, target, 2))
        method.unbind()
    a, b = (
        z.softmax(1) for z in network.output_layer(encode(network, images[:, :, None])).values()
    )
    assert_close(losses[1] - losses[0], 2 * (a - b).square().mean())


@pytest.mark.parametrize("loss", [nn.functional.l1_loss, nn.functional.mse_loss])
def test_regression_fits_what_the_others_leave(loss):
    torch.manual_seed(0)
    network = LateFused(Late("ab").encoders, lambda: LinearHead(classes=1), "sum")
    inputs, target = torch.randn(8, 2, 5), torch.randn(8, 1)
    method = ReconBoost(loss, epochs_per_stage=1, rectify_epochs=0).bind(network)
    a, b = network.output_layer(encode(network, inputs)).values()
    actual = loss_of(method, network, inputs, target, 2)
    assert_close(actual, loss(b, target - a))
    actual.backward()
    assert every(p.grad is None for p in branch(network, "a"))


def test_accumulation_equals_one_large_batch():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0).bind(network)
    for inputs, target in BATCHES[:2]:
        (loss_of(method, network, inputs, target, 2) / 2).backward()
    parts = [p.grad.clone() for p in branch(network, "audio")]
    network.zero_grad()
    both = [torch.cat(part) for part in zip(*BATCHES[:2], strict=True)]
    loss_of(method, network, *both, epoch=2).backward()
    for gradient, parameter in zip(parts, branch(network, "audio"), strict=True):
        assert_close(gradient, parameter.grad)


def test_state_survives_a_checkpoint():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0).bind(network)
    method.start_epoch(2)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.bind(network).active == 1


def test_never_waits_for_the_device():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0).bind(network)
    with NoSynchronization():
        loss_of(method, network, *BATCHES[0], epoch=2).backward()
        method.edit_gradients()


def test_half_precision_computes_in_float32():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=1, rectify_epochs=0).bind(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method, network, *BATCHES[0], epoch=2)
    assert loss.dtype == torch.float32
    assert_close(loss, loss_of(method, network, *BATCHES[0], epoch=2), rtol=0.02, atol=0.02)


def test_refuses_networks_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"late-fusion network, because ReconBoost .* is Linear"):
        ReconBoost(cross_entropy).bind(make_late()[0])
    with pytest.raises(ValueError, match=r"rule 'sum', because ReconBoost .* combines by 'mean'"):
        ReconBoost(cross_entropy).bind(make_late_fused())


def test_refuses_targets_of_several_labels():
    network = make_late_fused(rule="sum")
    method = ReconBoost(nn.functional.binary_cross_entropy_with_logits).bind(network)
    with pytest.raises(ValueError, match=r"class indices .* got \(16, 4\) and \(16, 4\)"):
        loss_of(method, network, BATCHES[0][0], torch.zeros(16, 4), 1)


def test_refuses_a_loop_without_epochs():
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy).bind(network)
    prediction = network(BATCHES[0][0])
    with pytest.raises(RuntimeError, match=r"epochs to be announced .* `start_epoch\(epoch\)`"):
        method(prediction, BATCHES[0][1])


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs_per_stage": -1},
        {"epochs_per_stage": 0, "rectify_epochs": 0},
        {"w1": 1.0, "w2": 2.0},
        {"w2": -1.0},
        {"alpha": -0.5},
        {"alpha": float("nan")},
    ],
)
def test_refuses_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=f"Expected .*`{next(iter(setting))}"):
        ReconBoost(cross_entropy, **setting)


def parameters_of_rank(rank, world=2):
    """What the network ends with after a round and a half on this rank's share of each batch."""
    network = make_late_fused(rule="sum")
    method = ReconBoost(cross_entropy, epochs_per_stage=2, rectify_epochs=1).bind(network)
    wrapped = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for epoch in range(1, 12):
        method.start_epoch(epoch)
        inputs, target = (part.chunk(world)[rank] for part in BATCHES[epoch % 4])
        optimizer.zero_grad()
        method(wrapped(inputs), target).backward()
        optimizer.step()
    return network.state_dict()


def test_two_ranks_on_halves_equal_one_process_on_the_whole(tmp_path):
    first, second = on_two_ranks(parameters_of_rank, tmp_path)
    for key, whole in parameters_of_rank(0, 1).items():
        assert torch.equal(first[key], second[key])
        assert_close(first[key], whole)
