"""MLA: turns, the projection on numbers worked out by hand, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.late_fusion import LateFusion
from cggm.methods.mla import MLA
from tests.cggm.networks import LinearHead, late_batch, make_late, make_late_fused
from tests.quantifiers import every

cross_entropy = nn.functional.cross_entropy
NAMES = ("a", "b")
BATCHES = [late_batch(names=NAMES, seed=seed) for seed in range(6)]


def make(**settings):
    network = make_late_fused(NAMES, rule="entropy")
    return network, MLA(cross_entropy, **settings).bind(network)


class Given(nn.Module):
    """Encoders that return two weighted numbers, and one last layer of two classes."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({name: Weights() for name in NAMES})
        heads = {name: LinearHead(2, 2) for name in NAMES}
        self.output_layer = LateFusion(heads, "entropy", shared=True)
        nn.init.zeros_(self.output_layer.shared_weight)
        nn.init.zeros_(self.output_layer.shared_bias)

    def forward(self, inputs):
        features = {n: e(x) for (n, e), x in zip(self.encoders.items(), inputs, strict=True)}
        return self.output_layer.combine(self.output_layer(features))


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight * x


def test_the_projection_by_hand():
    network = Given()
    method = MLA(cross_entropy, samples=4).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    # two samples of each modality; classes 0 and 0, so that dL/dz is (-1/2, 1/2) / 2 for each
    inputs = torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[1.0, 3.0], [3.0, -1.0]]])
    method.start_epoch(1)
    gradients = []
    for given in (inputs, inputs):
        optimizer.zero_grad()
        method(network(given), torch.tensor([0, 0])).backward()
        optimizer.step()
        gradients.append(network.output_layer.shared_weight.grad.clone())
    # the first step of all is not projected: -1/4 * (9 + 9)
    assert_close(gradients[0], torch.tensor([[-4.5, -4.5], [4.5, 4.5]]))
    # then r = (2, 1) and q = r; batch 1 of 2: alpha = 0.1^1.5
    alpha = 0.1**1.5
    projection = torch.eye(2) - torch.tensor([[4.0, 2.0], [2.0, 1.0]]) / (alpha + 5)
    projection /= projection.norm()
    assert_close(method.projection, projection)
    assert_close(gradients[1], torch.tensor([[-1.0, -0.5], [1.0, 0.5]]) @ projection.T)
    # what the mean input says is all but gone from the gradient
    assert gradients[1].norm() < 0.01


def test_the_division_of_the_released_code_by_hand():
    network = Given()
    method = MLA(cross_entropy, elementwise=True).bind(network)
    inputs = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]])
    for _ in range(2):
        method(network(inputs), torch.tensor([0])).backward()
        torch.optim.SGD(network.parameters(), lr=0.0).step()
    # q r^T = ((4, 2), (2, 1)), alpha 0.1 without a number of samples
    projection = torch.tensor([[1 - 4 / 4.1, -2 / 2.1], [-2 / 2.1, 1 - 1 / 1.1]])
    assert_close(method.projection, projection / projection.norm())


@pytest.mark.parametrize(("turns", "order"), [(1, "abab"), (2, "aabb")])
def test_each_step_belongs_to_one_modality_and_the_other_rests(turns, order):
    network, method = make(turns=turns)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for name, (inputs, target) in zip(order, BATCHES, strict=False):
        before = copy.deepcopy(network)
        optimizer.zero_grad()
        prediction = network(inputs)
        loss = method(prediction, target)
        own = network.output_layer[name](network.encoders[name](inputs[:, NAMES.index(name)]))
        assert_close(loss, cross_entropy(own, target))
        loss.backward()
        optimizer.step()
        assert method.readings["term"].tolist() == [float(n == name) for n in NAMES]
        for other in NAMES:
            pairs = zip(
                network.encoders[other].parameters(),
                before.encoders[other].parameters(),
                strict=True,
            )
            assert every(torch.equal(p, q) != (other == name) for p, q in pairs)
        assert not torch.equal(
            network.output_layer.shared_weight, before.output_layer.shared_weight
        )


def test_without_projection_the_shared_layer_has_its_own_gradient():
    network, method = make(project=False)
    for (inputs, target), name in zip(BATCHES[:2], NAMES, strict=True):
        network.zero_grad()
        method(network(inputs), target).backward()
        torch.optim.SGD(network.parameters(), lr=0.0).step()
        twin = copy.deepcopy(network)
        twin.zero_grad()
        own = twin.output_layer[name](twin.encoders[name](inputs[:, NAMES.index(name)]))
        cross_entropy(own, target).backward()
        assert_close(
            network.output_layer.shared_weight.grad,
            twin.output_layer.shared_weight.grad,
        )


def test_alpha_falls_over_an_epoch_and_begins_anew():
    network, method = make(samples=40)
    found = []
    for epoch in (1, 2):
        method.start_epoch(epoch)
        for inputs, target in BATCHES[:3]:
            found.append(float(method.position / method.length))
            method(network(inputs), target).backward()
            torch.optim.SGD(network.parameters(), lr=0.0).step()
    # 40 samples in batches of 16 are 3; what comes before the first step is no part of an epoch
    assert found == pytest.approx([0.0, 1 / 3, 2 / 3] * 2)


def test_two_micro_batches_are_one_step():
    (inputs, target), results = BATCHES[1], []
    for parts in (1, 2):
        network, method = make()
        method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        network.zero_grad()
        for x, y in zip(inputs.chunk(parts), target.chunk(parts), strict=True):
            (method(network(x), y) / parts).backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        results.append((method.projection, network.output_layer.shared_weight.grad))
    for one, two in zip(*results, strict=True):
        assert_close(one, two)


def test_networks_without_a_shared_layer_are_refused():
    apart = make_late_fused(NAMES, rule="sum")
    with pytest.raises(
        ValueError, match=r"combines by 'sum' and its heads share none.*shared=True"
    ):
        MLA(cross_entropy).bind(apart)
    with pytest.raises(ValueError, match="MLA trains a prediction of each modality"):
        MLA(cross_entropy).bind(make_late(NAMES)[0])


@pytest.mark.parametrize("settings", [{"turns": -1}, {"alpha": 0.0}, {"alpha": 1.5}])
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        MLA(cross_entropy, **settings)
