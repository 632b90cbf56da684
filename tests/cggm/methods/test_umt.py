"""UMT: distances on numbers worked out by hand, teachers that stay, and when they are trained."""

import copy
import io
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cggm.methods.umt import UnimodalTeacher
from cggm.trials import Trials
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    LinearHead,
    encode,
    late_batch,
    make_late,
    make_late_fused,
)
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(4)]
cross_entropy = nn.functional.cross_entropy


class CountedTrials(Trials):
    """Counts the copies that are asked for."""

    copies = 0

    def copy(self, heads):
        self.copies += 1
        return super().copy(heads)


def make_trials(network):
    return CountedTrials(
        network,
        cross_entropy,
        lambda epoch: BATCHES,
        lambda epoch: BATCHES,
        lambda p: torch.optim.SGD(p, lr=0.1),
    )


def make_teachers(seed=7):
    return dict(make_late(seed=seed)[0].encoders.items())


def train(network, criterion, batches, accumulation=1):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for index, (inputs, target) in enumerate(batches):
        (criterion(network(inputs), target) / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Constant(nn.Module):
    """An encoder that returns one trainable tensor in a container."""

    def __init__(self, value, wrap=lambda x: x):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.value)


def distance(student, teacher, wrap=lambda x: x):
    """Distance of one modality's features from its teacher's."""
    encoder, layer = Constant(student, wrap), nn.Linear(2, 1)
    method = UnimodalTeacher(
        nn.functional.mse_loss, teachers={"a": Constant(teacher, wrap)}, weight=0.5
    )
    method.bind(encoders={"a": encoder}, output_layer=layer)
    encoder(torch.zeros(1))
    prediction = layer(torch.zeros(1, 2))
    loss = method(prediction, torch.zeros(1, 1))
    loss.backward()
    task = nn.functional.mse_loss(prediction, torch.zeros(1, 1))
    assert_close(loss - task, 0.5 * method.readings["distance"].sum())
    return method.readings["distance"].item(), encoder.value.grad


# Du et al., ICML 2023: || h - teacher ||^2, here over the number of entries
def test_distance_on_hand_computed_numbers():
    # (1 + 9 + 4 + 0) / 4; the gradient is 0.5 * 2 / 4 of the differences
    found, gradient = distance([[1.0, 3.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 5.0]])
    assert found == pytest.approx(3.5)
    assert_close(gradient, torch.tensor([[1.0, 3.0], [2.0, 0.0]]) / 4)


def test_levels_of_features_count_alike_whatever_their_size():
    def levels(x):
        return {"low": x, "deep": [x[:1], "no tensor", torch.tensor([3])]}

    # (1 + 9 + 4 + 0) / 4 and (1 + 9) / 2
    found, _ = distance([[1.0, 3.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 5.0]], levels)
    assert found == pytest.approx((3.5 + 5) / 2)


class Sequence(NamedTuple):
    values: Tensor
    mask: Tensor


@pytest.mark.parametrize("container", [Sequence, lambda x, mask: {"steps": x, "real": mask}])
def test_padding_beside_a_mask_does_not_count(container):
    def masked(x):
        return container(x, torch.tensor([[True, False], [True, True]]))

    # one sample of one real step, one of two: (1 + 9 + 4 + 0 + 0 + 4) / 6
    student = [[[1.0, 3.0], [70.0, float("inf")]], [[2.0, 5.0], [1.0, 2.0]]]
    teacher = [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 5.0], [1.0, 0.0]]]
    found, gradient = distance(student, teacher, masked)
    assert found == pytest.approx(3.0)
    assert gradient[0, 1].tolist() == [0, 0]


def test_a_mask_of_another_shape_is_no_mask():
    def unrelated(x):
        return {"steps": x, "flags": torch.tensor([False, False, False])}

    found, _ = distance([[1.0, 3.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 5.0]], unrelated)
    assert found == pytest.approx(3.5)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_network_gets_the_gradient_of_the_stated_loss(count):
    names = [f"modality {chr(97 + i)}" for i in range(count)]
    network, _ = make_late(names)
    other, teachers = copy.deepcopy(network), make_late(names, seed=7)[0].encoders
    inputs, target = late_batch(names=names)
    method = UnimodalTeacher(cross_entropy, teachers=dict(teachers.items()), weight=3.0)
    loss = method.bind(network)(network(inputs), target)
    expected = cross_entropy(other(inputs), target)
    for index, name in enumerate(names):
        student, teacher = (m[name](inputs[:, index]) for m in (other.encoders, teachers))
        expected = expected + 3.0 * (student - teacher.detach()).square().mean()
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_teachers_are_copies_that_never_change():
    network, _ = make_late()
    teachers = make_teachers()
    for teacher in teachers.values():
        teacher.append(nn.BatchNorm1d(6)).append(nn.Dropout(0.5))
    start = copy.deepcopy(teachers)
    method = UnimodalTeacher(cross_entropy, teachers=teachers).bind(network)
    method.train()
    random = torch.get_rng_state()
    train(network, method, BATCHES)
    assert torch.equal(random, torch.get_rng_state())
    for name, teacher in method.teachers.items():
        assert none(module.training for module in teacher.modules())
        assert none(p.requires_grad for p in teacher.parameters())
        for key, value in teacher.state_dict().items():
            assert torch.equal(value, start[name].state_dict()[key])
    assert every(p.requires_grad for t in teachers.values() for p in t.parameters())


def test_teachers_are_trained_on_their_modality_alone_from_the_initial_network():
    network, heads = make_late()
    start = copy.deepcopy(network)
    trials = make_trials(network)
    method = UnimodalTeacher(cross_entropy, heads, trials, epochs=2).bind(network)
    method.start_epoch(1)
    method.start_epoch(2)
    assert trials.copies == 1
    assert equal(network, start)
    for index, name in enumerate(NAMES):
        alone = nn.Sequential(copy.deepcopy(start.encoders[name]), copy.deepcopy(heads[name]))
        train(alone, cross_entropy, 2 * [(x[:, index], y) for x, y in BATCHES])
        assert equal(method.teachers[name], alone[0])
    hooks = [m._forward_hooks for t in method.teachers.values() for m in t.modules()]
    assert none(hooks)
    train(network, method, BATCHES)


def test_a_state_holds_the_teachers_and_a_resumed_run_trains_none():
    network, heads = make_late()
    method = UnimodalTeacher(cross_entropy, heads, make_trials(network), epochs=1).bind(network)
    method.start_epoch(1)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    again, others = make_late(seed=3)
    trials = make_trials(again)
    restored = UnimodalTeacher(cross_entropy, others, trials, epochs=1).bind(again)
    restored.load_state_dict(torch.load(file, weights_only=True))
    restored.start_epoch(2)
    assert trials.copies == 0
    assert equal(restored.teachers, method.teachers)


def test_teachers_see_what_the_encoders_saw():
    network, _ = make_late()
    encoder = network.encoders["audio"]
    network.encoders["audio"] = Shifted(encoder)
    teachers = make_teachers()
    teachers["audio"] = Shifted(teachers["audio"])
    method = UnimodalTeacher(cross_entropy, teachers=teachers).bind(network)
    inputs, target = BATCHES[0]
    features = {n: network.encoders[n](inputs[:, i]) for i, n in enumerate(NAMES) if n != "audio"}
    features["audio"] = network.encoders["audio"](inputs[:, 1], shift=2.0)
    method(network.decode({n: features[n] for n in NAMES}), target)
    taught = teachers["audio"](inputs[:, 1], shift=2.0)
    assert_close(
        method.readings["distance"][1], (features["audio"] - taught).square().mean().detach()
    )


class Shifted(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *, shift=0.0):
        return self.inner(x + shift)


def test_weight_zero_is_joint_training_and_runs_no_teacher():
    network, heads = make_late(dropout=0.3)
    joint = copy.deepcopy(network)
    trials = make_trials(network)
    method = UnimodalTeacher(cross_entropy, heads, trials, weight=0.0).bind(network)
    method.start_epoch(1)
    torch.manual_seed(1)
    train(network, method, BATCHES)
    torch.manual_seed(1)
    train(joint, cross_entropy, BATCHES)
    assert equal(network, joint)
    assert trials.copies == 0
    assert not method.teachers


def test_accumulation_equals_the_whole_batch():
    ends = []
    inputs, target = BATCHES[0]
    for parts in (1, 4):
        network, _ = make_late()
        method = UnimodalTeacher(cross_entropy, teachers=make_teachers()).bind(network)
        batches = zip(inputs.chunk(parts), target.chunk(parts), strict=True)
        train(network, method, list(batches), accumulation=parts)
        ends.append(list(network.parameters()))
    for p, q in zip(*ends, strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_serves_a_network_of_late_fusion_and_dense_prediction():
    network = make_late_fused()
    method = UnimodalTeacher(cross_entropy, teachers=make_teachers()).bind(network)
    train(network, method, BATCHES[:1])
    torch.manual_seed(0)
    dense, other = Convolutional(), Convolutional()
    method = UnimodalTeacher(cross_entropy, teachers=dict(other.encoders.items())).bind(dense)
    images, target = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    method(dense(images), target)
    a, b = (encode(n, images[:, :, None])["text"] for n in (dense, other))
    by_level = [(a["low"] - b["low"]), (a["rest"][0] - b["rest"][0])]
    expected = sum(x.square().mean() for x in by_level) / 2
    assert_close(method.readings["distance"][0], expected.detach())


def test_half_precision_is_compared_in_full():
    network, _ = make_late()
    method = UnimodalTeacher(cross_entropy, teachers=make_teachers()).bind(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(network(BATCHES[0][0]), BATCHES[0][1])
    assert method.readings["distance"].dtype == loss.dtype == torch.float32


def test_a_loop_that_starts_no_epoch_is_told():
    network, heads = make_late()
    method = UnimodalTeacher(cross_entropy, heads, make_trials(network)).bind(network)
    with pytest.raises(RuntimeError, match=r"trained before their students.*`start_epoch\(1\)`"):
        method(network(BATCHES[0][0]), BATCHES[0][1])


def test_other_names_than_the_encoders_are_refused():
    network, _ = make_late()
    method = UnimodalTeacher(cross_entropy, teachers={"text": LinearHead()})
    with pytest.raises(ValueError, match=r"one teacher or head per encoder.*got \['text'\]"):
        method.bind(network)
    assert none(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`teachers`, or `heads` and `trials`"),
        ({"weight": -1.0}, "`weight` not negative"),
        ({"epochs": 0}, "`epochs` of at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        UnimodalTeacher(cross_entropy, **settings)


def test_a_step_does_not_wait_for_the_device():
    network, _ = make_late()
    method = UnimodalTeacher(cross_entropy, teachers=make_teachers()).bind(network)
    train(network, method, BATCHES[:1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with NoSynchronization():
        for inputs, target in BATCHES[1:3]:
            optimizer.zero_grad(set_to_none=False)
            method(network(inputs), target).backward()
            optimizer.step()
