"""QMF: its rank term and history by hand, what it remembers, and what it refuses."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from cggm.late_fusion import LateFusion
from cggm.methods.qmf import QMF
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
from tests.quantifiers import every
from tests.ranks import on_two_ranks

BATCHES = [late_batch(seed=seed) for seed in range(4)]
POSITIONS = [torch.arange(16) + 16 * index for index in range(4)]
cross_entropy = nn.functional.cross_entropy


class Given(nn.Module):
    """Each modality's logits are its input."""

    def __init__(self, names="ab", classes=2):
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(classes, classes, bias=False) for n in names})
        for encoder in self.encoders.values():
            encoder.weight.data = torch.eye(classes)
        self.output_layer = LateFusion({n: nn.Identity() for n in names}, "energy")

    def forward(self, inputs):
        return self.output_layer.combine(self.output_layer(encode(self, inputs)))


def make(network, samples=64, task_loss=cross_entropy, **settings):
    return QMF(task_loss, samples, **settings).bind(network)


def train(network, criterion, steps=range(4), accumulation=1, lr=0.1):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    losses = []
    for index in steps:
        inputs, target = BATCHES[index]
        criterion.identify(POSITIONS[index])
        losses.append(criterion(network(inputs), target))
        (losses[-1] / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return [loss.detach() for loss in losses]


def ranks_of(positions, **settings):
    """Rank terms where confidences are 0, 0.5 and 1 (plus log(2) / 10) for both modalities."""
    network = Given()
    method = make(network, 4, **settings)
    method.counts.copy_(torch.tensor([1.0, 1.0, 2.0, 0.0]))
    # mean losses 1, 3, 2 and 2, 2, 2; the last sample was never seen
    method.sums.copy_(torch.tensor([[1.0, 3.0, 4.0, 0.0], [2.0, 2.0, 4.0, 0.0]]))
    method.identify(torch.tensor(positions))
    inputs = torch.tensor([0.0, 5.0, 10.0])[:, None, None].expand(3, 2, 2)
    loss = method(network(inputs), torch.tensor([0, 1, 0]))
    return method, loss


def test_rank_term_has_the_papers_sign():
    method, _ = ranks_of([0, 1, 2])
    # kappa 0, 1, 0.5. Pairs by the paper's equation: (0, 2) wants the confidence of 0 to be higher
    # by 0.5, it is lower by 1: 1.5; (1, 0) wants lower by 1, is higher by 0.5: 1.5; (2, 1) wants
    # higher by 0.5 and is: 0. Equal histories ask for nothing. The released code's sign gives 0.
    assert_close(method.readings["rank"], torch.tensor([1.0, 0.0]))
    assert_close(method.readings["confidence"], torch.full((2,), 0.5 + math.log(2.0) / 10))


def test_loss_adds_up_with_the_published_weights():
    _, loss = ranks_of([0, 1, 2])
    # logits are alike in both classes, so every cross-entropy is log(2), the fused one as well
    assert_close(loss, torch.tensor(3 * math.log(2.0) + 1.0))
    _, loss = ranks_of([0, 1, 2], unimodal=0.5, lam=0.1)
    assert_close(loss, torch.tensor(2 * math.log(2.0) + 0.1))


def test_samples_without_history_ask_for_nothing():
    method, _ = ranks_of([0, 1, 3])
    assert_close(method.readings["rank"], torch.tensor([0.5, 0.0]))  # the pair (1, 0) alone: 1.5/3


def test_rank_term_raises_the_confidence_of_easier_samples():
    network = Given("a")
    method = make(network, 2, unimodal=0.0)
    method.counts.fill_(1.0)
    method.sums.copy_(torch.tensor([[0.2, 0.9]]))
    method.identify(torch.tensor([0, 1]))
    inputs = torch.zeros(2, 1, 2, requires_grad=True)
    prediction = network(inputs)
    (gradient,) = torch.autograd.grad(method(prediction, torch.tensor([0, 1])), inputs)
    task = cross_entropy(network(inputs), torch.tensor([0, 1]))
    gradient -= torch.autograd.grad(task, inputs)[0]
    # two pairs of one sign, mean over two: each moves by p / 10 = 0.05
    assert_close(gradient[:, 0], torch.tensor([[-0.05, -0.05], [0.05, 0.05]]))


def test_first_epoch_is_finite_and_has_no_rank_term():
    network = make_late_fused(rule="energy")
    method = make(network)
    losses = train(network, method)
    assert torch.stack(losses).isfinite().all()
    assert method.readings["rank"].tolist() == [0, 0, 0]
    train(network, method)
    assert (method.readings["rank"] > 0).all()


def test_history_is_the_mean_loss_of_each_sample():
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method, [0, 1, 0], lr=0.0)
    inputs, target = BATCHES[0]
    alone = network.output_layer(encode(network, inputs)).values()
    expected = torch.stack([cross_entropy(z, target, reduction="none") for z in alone])
    assert method.counts.tolist() == [2] * 16 + [1] * 16 + [0] * 32
    assert_close(method.sums[:, :16] / 2, expected)
    assert (method.sums[:, 32:] == 0).all()


def test_history_moves_with_the_optimizer_alone():
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method, range(1), accumulation=2)
    assert method.counts.sum() == 0
    network.zero_grad()
    train(network, method, range(1, 2), accumulation=2)
    assert method.counts.tolist() == [0] * 16 + [1] * 16 + [0] * 32
    train(network, method, range(2, 4), accumulation=2)
    assert method.counts.tolist() == [0] * 16 + [1] * 48


def test_neutral_setting_is_joint_training():
    network = make_late_fused(rule="energy")
    joint = copy.deepcopy(network)
    train(network, make(network, lam=0.0, unimodal=0.0))
    optimizer = torch.optim.SGD(joint.parameters(), lr=0.1)
    for inputs, target in BATCHES:
        optimizer.zero_grad()
        cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), joint.parameters(), strict=True)
    )


def test_state_survives_a_checkpoint():
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method)
    file = io.BytesIO()
    torch.save([network.state_dict(), method.state_dict()], file)
    whole = train(network, method)
    file.seek(0)
    again = make_late_fused(seed=3, rule="energy")
    restored = make(again)
    for part, state in zip((again, restored), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert torch.equal(torch.stack(whole), torch.stack(train(again, restored)))


def test_binding_again_keeps_the_history():
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method)
    sums = method.sums.clone()
    method.unbind()
    assert torch.equal(method.bind(network).sums, sums)


def test_never_waits_for_the_device():
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method)
    with NoSynchronization():
        method.identify(POSITIONS[0])
        prediction = network(BATCHES[0][0])
        method(prediction, BATCHES[0][1]).backward()
        method.commit()


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_segmentation_remembers_the_mean_over_voxels(names):
    torch.manual_seed(0)
    network = LateFused(Convolutional(names).encoders, ConvolutionalHead, "energy")
    method = make(network, 4)
    images, target = torch.randn(4, len(names), 8, 8), torch.randint(3, (4, 8, 8))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    for _ in range(2):
        method.identify(torch.arange(4))
        method(network(images), target).backward()
        optimizer.step()
    alone = network.output_layer(encode(network, images[:, :, None]))
    for index, logits in enumerate(alone.values()):
        losses = cross_entropy(logits, target, reduction="none").mean((1, 2))
        assert_close(method.sums[index] / 2, losses)
        confidence = (logits.logsumexp(1) / 10).mean()
        assert_close(method.readings["confidence"][index], confidence)
    assert (method.readings["rank"] > 0).all()


def test_half_precision_keeps_the_history_in_float32():
    network = make_late_fused(rule="energy")
    method = make(network)
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(network, method, [0, 1, 0, 1])
    assert torch.stack(losses).isfinite().all()
    assert method.sums.dtype == method.readings["rank"].dtype == torch.float32
    assert method.readings["rank"].sum() > 0


def test_refuses_networks_of_another_fusion():
    with pytest.raises(ValueError, match=r"late-fusion network, because QMF .* is Linear"):
        make(make_late()[0])
    with pytest.raises(ValueError, match=r"rule 'energy', because QMF .* combines by 'mean'"):
        make(make_late_fused())


def test_refuses_values():
    torch.manual_seed(0)
    network = LateFused(Late().encoders, lambda: LinearHead(classes=2), "energy")
    method = make(network, task_loss=nn.functional.mse_loss)
    prediction = network(BATCHES[0][0])
    with pytest.raises(ValueError, match=r"class indices .* energy of class logits.*\(16, 2\) and"):
        method(prediction, torch.randn(16, 2))


@pytest.mark.parametrize("positions", [None, torch.arange(3)])
def test_refuses_batches_without_positions(positions):
    network = make_late_fused(rule="energy")
    method = make(network)
    train(network, method, [0])  # positions serve one call
    if positions is not None:
        method.identify(positions)
    prediction = network(BATCHES[0][0])
    with pytest.raises(RuntimeError, match=r"positions of the batch's 16 .* `identify="):
        method(prediction, BATCHES[0][1])


def test_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match="`samples` >= 1, but got 0"):
        QMF(cross_entropy, 0)
    for setting in ({"lam": -1.0}, {"unimodal": -1.0}, {"lam": float("nan")}):
        with pytest.raises(ValueError, match="`unimodal` and `lam` not negative"):
            QMF(cross_entropy, 1, **setting)


def history_of_rank(rank, world=2):
    """Mean losses after one epoch of this rank's share of each batch."""
    network = make_late_fused(rule="energy")
    method = QMF(cross_entropy, 64).bind(network)
    wrapped = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for (inputs, target), positions in zip(BATCHES, POSITIONS, strict=True):
        optimizer.zero_grad()
        method.identify(positions.chunk(world)[rank])
        method(wrapped(inputs.chunk(world)[rank]), target.chunk(world)[rank]).backward()
        optimizer.step()
    return [method.sums, method.counts]


def test_two_ranks_share_one_history(tmp_path):
    first, second = on_two_ranks(history_of_rank, tmp_path)
    for a, b, whole in zip(first, second, history_of_rank(0, 1), strict=True):
        assert torch.equal(a, b)
        assert_close(a, whole)
