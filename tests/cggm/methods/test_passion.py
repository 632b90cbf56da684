"""PASSION: its terms worked out by hand, its weights by epoch, and what is left out."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods import PASSION
from cggm.methods.passion import _differences, class_shares, distillation, similarities
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    ConvolutionalHead,
    LinearHead,
    accuracy,
    encode,
    make_late,
)
from tests.cggm.synchronization import NoSynchronization

cross_entropy = nn.functional.cross_entropy
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = (IMAGES.mean(1) > 0).long() + (IMAGES[:, 0] > 0.5)


def make(dims=2, **settings):
    torch.manual_seed(0)
    network = Convolutional(dims=dims)
    heads = {name: ConvolutionalHead(dims=dims) for name in NAMES}
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return network, PASSION(heads, cross_entropy, accuracy, **settings).bind(network)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1)


def test_distillation_of_two_classes():
    # teacher (2/3, 1/3) and student (1/2, 1/2) at temperature 2, over both classes of one voxel:
    # 4 * (2/3 log(4/3) + 1/3 log(2/3)) / 2
    teacher = torch.tensor([[2 * math.log(2), 0.0]])[:, :, None, None]
    student = torch.zeros(1, 2, 1, 1, requires_grad=True)
    found = distillation(student, teacher, 2.0)
    expected = 2 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert_close(found, torch.tensor([expected]))
    assert distillation(teacher, teacher, 2.0).item() == 0


def test_similarities_to_the_mean_of_each_class():
    # class 0: (2, 0) and (0, 2), of mean (1, 1); class 1: (3, 4); class 2: none
    features = torch.tensor([[2.0, 0.0, 3.0], [0.0, 2.0, 4.0]])[None, :, :, None]
    target = torch.tensor([[[0], [0], [1]]])
    shares = class_shares(target, torch.zeros(1, 3, 3, 1), features)
    half = 1 / math.sqrt(2)
    expected = [[half, half, 7 * half / 5], [3 / 5, 4 / 5, 1.0], [0.0, 0.0, 0.0]]
    assert_close(similarities(features, shares)[0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_classes_on_a_coarser_grid_are_shares():
    target = torch.tensor([[[0, 1], [1, 1]]])
    shares = class_shares(target, torch.zeros(1, 2, 2, 2), torch.zeros(1, 5, 1, 1))
    assert shares.flatten().tolist() == [0.25, 0.75]


def test_a_modality_behind_gets_its_loss_and_no_other():
    network, method = make(distill=0.0, prototypes=0.0)
    features = encode(network, IMAGES[:, :, None])
    own = method.heads.losses(features, TARGET, cross_entropy)
    loss = method(network(IMAGES), TARGET)
    behind = method.readings["behind"] > 0
    assert 0 < behind.sum() < 3
    assert_close(method.readings["behind"].sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(loss, cross_entropy(network(IMAGES), TARGET) + own[behind].sum())


def test_weights_move_once_an_epoch_has_ended():
    _, method = make(eta=0.2)
    method.start_epoch(1)
    # means .1, .2, .3 over 4, 2 and 4 samples: (mean - d) / mean = .5, 0, -.5; eta .2 * 1.5
    method.distances.copy_(torch.tensor([[0.4, 0.4, 1.2], [4.0, 2.0, 4.0], [4.0, 4.0, 4.0]]))
    method.start_epoch(1)
    assert method.beta.tolist() == [1, 1, 1]
    method.start_epoch(2)
    moved = torch.tensor([0.85, 1.0, 1.15])
    assert_close(method.beta, math.sqrt(3) * moved / moved.norm())
    assert method.distances.sum() == 0
    before = method.beta.clone()
    method.start_epoch(3)  # an epoch without a step
    assert torch.equal(method.beta, before)


def test_step_size_grows_and_weights_are_clipped():
    _, method = make(eta=4.0, growth_every=1)
    method.clock.epoch = 2
    method.distances.copy_(torch.tensor([[1.0, 2.0, 3.0], [1.0] * 3, [1.0] * 3]))
    method.start_epoch(3)
    # 4 * 1.5^2 * (.5, 0, -.5): (-3.5, 1, 5.5) clipped to (.1, 1, 4)
    moved = torch.tensor([0.1, 1.0, 4.0])
    assert_close(method.beta, math.sqrt(3) * moved / moved.norm())


def test_what_was_taken_is_out_of_every_term():
    rates = {"text": 0.5, "audio": 0.0, "video": 0.0}
    network, method = make(p=rates, samples=6)
    _, other = make(p=rates, samples=6)
    method.identify(torch.arange(6))
    loss = method(network(IMAGES), TARGET)
    loss.backward()
    kept = method.draws.last[:, 0]
    assert 0 < kept.sum() < 6
    assert_close(method.draws.shares()[0], kept.float().mean())
    assert method.window["distances"][1].tolist() == [kept.sum(), 6, 6]
    changed = IMAGES.clone()
    changed[~kept, 0] += 1.0
    other_network = Convolutional()
    other_network.load_state_dict(network.state_dict())
    other.unbind()
    other.bind(other_network)
    other.identify(torch.arange(6))
    assert_close(other(other_network(changed), TARGET), loss)


def test_what_a_batch_lacks_is_out_of_every_term():
    network, method = make()
    there = torch.tensor([True, True, False, False, True, False])
    method.present({"text": there, "audio": False})
    method(network(IMAGES), TARGET).backward()
    assert method.window["distances"][1].tolist() == [3, 0, 6]
    assert method.readings["distance"].isnan().tolist() == [False, True, False]
    sgd(network).step()
    # three of six samples had the text: a sample that has it counts twice
    with torch.no_grad():
        total = method.distances
    assert (total[2] / total[1])[0] == 2


def test_teachers_get_no_gradient_and_students_reach_the_fusion():
    network, method = make(unimodal=0.0, prototypes=0.0)
    prediction = network(IMAGES)
    loss = method(prediction, TARGET) - cross_entropy(prediction, TARGET)
    assert (
        torch.autograd.grad(loss, prediction, retain_graph=True, allow_unused=True)[0].abs().sum()
        < 1e-6
    )
    loss.backward()
    assert network.decoder.weight.grad.abs().sum() > 0


def test_volumes():
    network, method = make(dims=3)
    volumes = torch.randn(2, 3, 4, 4, 4)
    assert method(network(volumes), torch.randint(3, (2, 4, 4, 4))).isfinite()


def test_a_step_never_waits_for_the_device():
    network, method = make()
    with NoSynchronization():
        method(network(IMAGES), TARGET).backward()


def test_targets_that_are_no_maps_are_refused():
    prediction = torch.zeros(6, 3, 8, 8)
    with pytest.raises(ValueError, match=r"classes of shape \(6, 8, 8\).*got \(6,\)"):
        class_shares(torch.zeros(6, dtype=torch.int64), prediction, prediction)


def test_a_network_that_predicts_no_map_is_refused():
    network, _ = make_late()
    heads = {name: LinearHead() for name in NAMES}
    with pytest.raises(ValueError, match=r"convolutional output layer.*such as RedCore"):
        PASSION(heads, cross_entropy, accuracy).bind(network)


@pytest.mark.parametrize(
    "settings", [{"unimodal": -1.0}, {"distill": float("inf")}, {"eta": -0.1}, {"temperature": 0.0}]
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        make(**settings)


def test_several_predictions_are_refused():
    network, method = make()
    with pytest.raises(ValueError, match="return one tensor, because PASSION compares"):
        method([network(IMAGES)], TARGET, network(IMAGES).sum())


def test_differences_by_hand():
    # two classes over two voxels, the second of which no voxel has
    student = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    shares = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    square, size = _differences(student, torch.tensor([[[0.0, 5.0], [0.0, 0.0]]]), shares)
    assert (square.tolist(), size.tolist()) == ([5.0], [2.0])
