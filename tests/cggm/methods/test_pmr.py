"""PMR: prototypes, the imbalance of their verdicts, the loss, and what it refuses."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cggm.methods._parts.prototypes import log_probabilities, sample_vectors
from cggm.methods.pmr import PMR
from cggm.trials import Trials
from tests.cggm.networks import Convolutional, late_batch, make_late
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(8)]
cross_entropy = nn.functional.cross_entropy


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def train(network, criterion, batches, accumulation=1):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for index, (inputs, target) in enumerate(batches):
        losses.append(criterion(network(inputs), target))
        (losses[-1] / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return [loss.detach() for loss in losses]


class Scalars(nn.Module):
    """Each modality is a number, each encoder starts as the identity, and two classes are told."""

    def __init__(self, names):
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(1, 1, bias=False) for n in names})
        for encoder in self.encoders.values():
            encoder.weight.data.fill_(1.0)
        self.output_layer = nn.Linear(len(names), 2)

    def forward(self, inputs):
        parts = [e(x[:, None]) for e, x in zip(self.encoders.values(), inputs.T, strict=True)]
        return self.output_layer(torch.cat(parts, 1))


def scalars(names, **settings):
    torch.manual_seed(0)
    network = Scalars(names)
    return network, PMR(cross_entropy, **settings).bind(network)


def show(network, method, rows, classes):
    """One optimizer step that leaves the network where it is."""
    loss = method(network(torch.tensor(rows)), torch.tensor(classes))
    loss.backward()
    torch.optim.SGD(network.parameters(), lr=0.0).step()
    network.zero_grad()


def means(method, name):
    return method.get_extra_state()["means"][name].tolist()


def test_prototypes_are_class_means_of_an_epoch_mixed_by_momentum():
    network, method = scalars("ab", momentum=0.25)
    method.start_epoch(1)
    show(network, method, [[1.0, 5.0], [3.0, 5.0]], [0, 0])
    show(network, method, [[5.0, 7.0], [4.0, 9.0]], [0, 1])
    assert means(method, "a") == [[0, 0], [0, 0]]
    method.start_epoch(2)
    # (1 + 3 + 5) / 3 and 4; (5 + 5 + 7) / 3 and 9; the last column says that a class is known
    assert means(method, "a") == [[3, 1], [4, 1]]
    assert_close(torch.tensor(means(method, "b")), torch.tensor([[17 / 3, 1], [9, 1]]))
    show(network, method, [[7.0, 0.0]], [0])
    method.start_epoch(2)
    assert means(method, "a") == [[3, 1], [4, 1]]
    method.start_epoch(3)
    # 0.25 * 3 + 0.75 * 7; a class that the epoch lacked keeps its prototype
    assert means(method, "a") == [[6, 1], [4, 1]]


def test_two_modalities_on_hand_computed_numbers():
    network, method = scalars("ab", alpha=2.0, mu=0.1, entropy_epochs=2)
    method.start_epoch(1)
    show(network, method, [[0.0, 0.0], [4.0, 1.0]], [0, 1])
    method.start_epoch(2)
    inputs, target = torch.tensor([[1.0, 0.25]]), torch.tensor([0])
    prediction = network(inputs)
    loss = method(prediction, target)
    # a: distances 1 and 3, so p(0) = 1 / (1 + e^-2); b: 0.25 and 0.75, so 1 / (1 + e^-0.5)
    fast, slow = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))
    beta = fast / slow - 1
    entropy = -fast * math.log(fast) - (1 - fast) * math.log(1 - fast)
    assert_close(method.readings["score"], torch.tensor([fast, slow]))
    assert_close(method.readings["weight"], torch.tensor([0.0, beta]))
    task = cross_entropy(prediction, target)
    assert_close(loss, task - 2 * beta * math.log(slow) - 0.1 * beta * entropy)
    method.start_epoch(3)
    later = method(network(inputs), target)
    assert_close(later, task - 2 * beta * math.log(slow))


def test_three_modalities_are_compared_with_the_mean_of_the_others():
    network, method = scalars("abc", mu=0.0)
    method.start_epoch(1)
    show(network, method, [[0.0, 0.0, 0.0], [4.0, 1.0, 2.0]], [0, 1])
    method.start_epoch(2)
    method(network(torch.zeros(1, 3)), torch.tensor([0]))
    a, b, c = (1 / (1 + math.exp(-d)) for d in (4.0, 1.0, 2.0))
    expected = [0.0, (a + c) / 2 / b - 1, (a + b) / 2 / c - 1]
    expected[2] = max(expected[2], 0.0)
    assert_close(method.readings["weight"], torch.tensor(expected))


def test_the_slow_modality_is_drawn_to_its_prototype_and_the_fast_one_is_not():
    network, method = scalars("ab", mu=0.0)
    method.start_epoch(1)
    show(network, method, [[0.0, 0.0], [4.0, 1.0]], [0, 1])
    method.start_epoch(2)
    inputs, target = torch.tensor([[1.0, 0.25]]), torch.tensor([0])
    prediction = network(inputs)
    extra = method(prediction, target) - cross_entropy(prediction, target)
    fast, slow = (network.encoders[n].weight for n in "ab")
    first, second = torch.autograd.grad(extra, [fast, slow])
    assert first.item() == 0
    # -log p = softplus(|h| - |h - 1|) has the slope 2 (1 - p), and h = 0.25 w
    p = 1 / (1 + math.exp(-0.5))
    beta = (1 / (1 + math.exp(-2))) / p - 1
    assert second.item() == pytest.approx(beta * 2 * (1 - p) * 0.25, rel=1e-5)


def test_a_batch_is_not_judged_by_its_own_labels():
    network, method = scalars("ab")
    inputs, target = torch.tensor([[0.0, 0.0], [4.0, 1.0]]), torch.tensor([0, 1])
    prediction = network(inputs)
    assert torch.equal(method(prediction, target), cross_entropy(prediction, target))
    assert method.readings["weight"].tolist() == [0, 0]
    method(network(inputs), target)
    assert method.readings["score"].tolist() == [0, 0]


def test_evaluation_never_feeds_the_prototypes():
    network, method = scalars("ab")
    show(network, method, [[0.0, 0.0], [4.0, 1.0]], [0, 1])
    before = copy.deepcopy(method.get_extra_state())
    network.eval()
    method(network(torch.ones(1, 2)), torch.tensor([0]))
    with torch.no_grad():
        method(network.train()(torch.ones(1, 2)), torch.tensor([0]))
    after = method.get_extra_state()
    assert every(torch.equal(before["sums"][n], after["sums"][n]) for n in "ab")


def test_empty_classes_leave_everything_finite():
    network, method = scalars("ab", mu=1.0)
    method.start_epoch(1)
    show(network, method, [[1.0, 2.0]], [0])
    method.start_epoch(2)
    inputs, target = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([1, 1])
    loss = method(network(inputs), target)
    loss.backward()
    assert_close(loss, cross_entropy(network(inputs), target))
    assert method.readings["score"].tolist() == [0, 0]
    method(network(inputs), torch.tensor([0, 1]))
    # two samples of the unseen class are no evidence; one of the only known class is certain
    assert method.readings["score"].tolist() == [1, 1]
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_labels_outside_the_classes_are_ignored():
    network, method = scalars("ab")
    show(network, method, [[1.0, 2.0], [3.0, 4.0]], [-100, 1])
    assert method.get_extra_state()["sums"]["a"].tolist() == [[0, 0], [3, 1]]


def test_distance_zero_has_no_gradient():
    vectors = torch.ones(2, 3, requires_grad=True)
    known = torch.tensor([True, True, False])
    verdict = log_probabilities(vectors, torch.tensor([[1.0] * 3, [0.0] * 3, [9.0] * 3]), known)
    assert_close(verdict.exp().sum(1), torch.ones(2))
    assert verdict[0, 2].exp() == 0
    (gradient,) = torch.autograd.grad(
        -verdict[:, 0].sum() - (verdict.exp() * verdict).sum(), vectors
    )
    assert gradient.isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_neutral_setting_equals_joint_training_bit_for_bit(count):
    names = [f"modality {chr(97 + i)}" for i in range(count)]
    network, _ = make_late(names)
    joint = copy.deepcopy(network)
    method = PMR(cross_entropy, alpha=0.0, mu=0.0).bind(network)
    batches = [late_batch(names=names, seed=seed) for seed in range(4)]
    for epoch in (1, 2):
        method.start_epoch(epoch)
        train(network, method, batches)
        train(joint, cross_entropy, batches)
    assert equal(network, joint)


def test_a_single_modality_is_trained_as_joint():
    network, _ = make_late(["text"])
    joint = copy.deepcopy(network)
    batches = [late_batch(names=["text"], seed=seed) for seed in range(4)]
    train(network, PMR(cross_entropy).bind(network), batches)
    train(joint, cross_entropy, batches)
    assert equal(network, joint)


def test_default_setting_departs_from_joint_training():
    network, _ = make_late()
    joint = copy.deepcopy(network)
    method = PMR(cross_entropy).bind(network)
    assert every(loss.isfinite() for loss in train(network, method, BATCHES))
    train(joint, cross_entropy, BATCHES)
    assert not equal(network, joint)
    assert set(method.readings) == {"score", "weight", "prototype_loss"}
    assert every(value.shape == (3,) for value in method.readings.values())


def test_permuted_modalities_permute_the_weights():
    rows, target = torch.tensor([[0.0, 3.0, 1.0], [4.0, 1.0, 2.0]]), torch.tensor([0, 1])
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        network, method = scalars("abc")
        method.start_epoch(1)
        show(network, method, rows[:, order].tolist(), [0, 1])
        method(network(rows[:, order] * 0.7), target)
        found.append(method.readings["weight"])
    assert found[0].max() > 0
    assert_close(found[0][[2, 0, 1]], found[1])


def test_accumulation_moves_the_sums_once_from_the_whole_window():
    ends = []
    inputs, target = BATCHES[0]
    for parts in (1, 4):
        network, _ = make_late()
        method = PMR(cross_entropy).bind(network)
        batches = list(zip(inputs.chunk(parts), target.chunk(parts), strict=True))
        train(network, method, batches, accumulation=parts)
        ends.append(method.get_extra_state()["sums"])
    for name, sums in ends[0].items():
        assert_close(sums, ends[1][name])
        assert_close(sums[:, -1], target.bincount(minlength=4).float())


def test_a_window_without_a_step_is_forgotten():
    network, _ = make_late()
    method = PMR(cross_entropy).bind(network)
    method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
    network.zero_grad()
    train(network, method, BATCHES[1:2])
    sums = next(iter(method.get_extra_state()["sums"].values()))
    assert sums[:, -1].sum() == len(BATCHES[1][1])


def test_state_survives_a_checkpoint_within_an_epoch():
    network, _ = make_late()
    method = PMR(cross_entropy).bind(network)
    method.start_epoch(1)
    train(network, method, BATCHES[:2])
    method.start_epoch(2)
    train(network, method, BATCHES[2:4])
    again = copy.deepcopy(network.state_dict()), copy.deepcopy(method.state_dict())
    whole = train(network, method, BATCHES[4:6])
    method.start_epoch(3)
    whole += train(network, method, BATCHES[6:])
    other, _ = make_late(seed=5)
    resumed = PMR(cross_entropy).bind(other)
    other.load_state_dict(again[0])
    resumed.load_state_dict(again[1])
    rest = train(other, resumed, BATCHES[4:6])
    resumed.start_epoch(3)
    rest += train(other, resumed, BATCHES[6:])
    assert every(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


class Sequence(NamedTuple):
    values: Tensor
    mask: Tensor


def test_one_vector_per_sample():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert sample_vectors(Sequence(values, mask)).tolist() == [[2, 3]]
    assert_close(sample_vectors(values), torch.tensor([[13 / 3, 5.0]]))
    assert sample_vectors(Sequence(values, ~mask & mask)).tolist() == [[0, 0]]
    nan = values.clone()
    nan[0, 2] = torch.nan
    assert sample_vectors({"x": Sequence(nan, mask)}).tolist() == [[2, 3]]
    maps = {"low": torch.tensor([[[[1.0, 3.0]]]]), "rest": [torch.full((1, 2, 1, 1, 1), 5.0), "-"]}
    assert sample_vectors(maps).tolist() == [[2, 5, 5]]
    assert sample_vectors(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    for wrong in (torch.ones(3), torch.ones(3, 2, dtype=torch.int64), {}):
        with pytest.raises(ValueError, match="tensors of floats"):
            sample_vectors(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_prototypes_in_full_precision(dtype):
    network, _ = make_late()
    method = PMR(cross_entropy).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for inputs, target in BATCHES:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = method(network(inputs), target)
        loss.backward()
        optimizer.step()
    state = method.get_extra_state()["sums"]
    assert every(s.dtype == torch.float32 for s in [*state.values(), *method.readings.values()])
    assert loss.isfinite()


def test_a_step_never_waits_for_the_device():
    network, _ = make_late()
    method = PMR(cross_entropy).bind(network)
    train(network, method, BATCHES[:2])
    with NoSynchronization():
        train(network, method, BATCHES[2:6], accumulation=2)


def test_tasks_without_a_class_per_sample_are_refused():
    with pytest.raises(ValueError, match="linear output layer of two or more classes"):
        PMR(cross_entropy).bind(Convolutional())
    network, _ = make_late(classes=1)
    with pytest.raises(ValueError, match=r"two or more classes.*shape \(1, 6\)"):
        PMR(nn.functional.mse_loss).bind(network)
    assert none(m._forward_hooks for m in network.modules())
    network, _ = make_late()
    method = PMR(nn.functional.mse_loss).bind(network)
    for target in (torch.rand(16, 4), torch.rand(16), torch.ones(16, dtype=torch.bool)):
        method.task_loss = lambda p, t: p.sum()
        with pytest.raises(ValueError, match=r"integer classes of shape \(B,\).*Choose another"):
            method(network(BATCHES[0][0]), target)


@pytest.mark.parametrize(
    "settings", [{"alpha": -1.0}, {"mu": -1.0}, {"momentum": 1.0}, {"entropy_epochs": -1}]
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        PMR(cross_entropy, **settings)


def test_ends_with_the_last_epoch():
    network, _ = make_late()
    method = PMR(cross_entropy, last_epoch=2).bind(network)
    for epoch in (1, 2, 3):
        method.start_epoch(epoch)
        inputs, target = late_batch(seed=epoch)
        prediction = network(inputs)
        loss = method(prediction, target)
        assert torch.equal(loss, cross_entropy(prediction, target)) == (epoch in (1, 3))
        loss.backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()


def test_prototypes_are_there_before_the_first_epoch_from_a_tenth_of_the_batches():
    torch.manual_seed(0)
    network = Scalars("ab")

    def batch(rows, classes):
        return torch.tensor(rows), torch.tensor(classes)

    far = batch([[90.0, 90.0]], [0])
    first = [batch([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]], [0, 0, 1]), *[far] * 9]
    train = {1: [*first, batch([[5.0, 6.0]], [0])], 2: [batch([[7.0, 8.0]], [0])]}
    trials = Trials(network, cross_entropy, train.get, train.get, torch.optim.SGD)
    method = PMR(cross_entropy, trials, momentum=0.25).bind(network)
    method.start_epoch(1)
    # batches 1 and 11: (1 + 3 + 5) / 3 and 8; (2 + 4 + 6) / 3 and 0
    assert means(method, "a") == [[3, 1], [8, 1]]
    assert means(method, "b") == [[4, 1], [0, 1]]
    rows, classes = batch([[3.0, 0.0]], [0])
    prediction = network(rows)
    loss = method(prediction, classes)
    assert loss != cross_entropy(prediction, classes)  # no joint step any more
    method.start_epoch(2)
    # 0.25 of the old, 0.75 of the new; class 1 is not in the tenth
    assert means(method, "a") == [[6, 1], [8, 1]]
    assert means(method, "b") == [[7, 1], [0, 1]]
