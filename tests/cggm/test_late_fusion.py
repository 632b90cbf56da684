"""Late fusion: every rule by hand, what it refuses, and its state."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.late_fusion import RULES, LateFusion, energy
from cggm.methods import GuidedHeads, UnimodalLosses
from tests.cggm.networks import LinearHead, accuracy, late_batch, make_late, make_late_fused

# two modalities, one sample, two classes
LOGITS = {"a": torch.tensor([[math.log(3.0), 0.0]]), "b": torch.tensor([[0.0, 0.0]])}
# energies log(3 + 1) / 10 and log(1 + 1) / 10; probabilities (3/4, 1/4) and (1/2, 1/2)
BY_HAND = {
    "mean": [math.log(3.0) / 2, 0.0],
    "sum": [math.log(3.0), 0.0],
    "probabilities": [math.log(5 / 8), math.log(3 / 8)],
    "energy": [math.log(4.0) / 10 * math.log(3.0), 0.0],
    # entropies log 4 - 3/4 log 3 and log 2, so weights 3^(3/4) / 4 and 1/2 over their sum
    "entropy": [3**0.75 / (3**0.75 + 2) * math.log(3.0), 0.0],
}


def fusion(rule="mean"):
    return LateFusion({"a": nn.Identity(), "b": nn.Identity()}, rule)


@pytest.mark.parametrize("rule", list(RULES))
def test_rules_by_hand(rule):
    assert_close(fusion(rule).combine(LOGITS), torch.tensor([BY_HAND[rule]]))


@pytest.mark.parametrize("rule", list(RULES))
def test_rules_act_on_each_voxel(rule):
    torch.manual_seed(0)
    maps = {name: torch.randn(2, 3, 4, 5) for name in "abc"}
    combined = fusion(rule).combine(maps)
    voxel = fusion(rule).combine({name: x[:, :, 1, 2] for name, x in maps.items()})
    assert combined.shape == (2, 3, 4, 5)
    assert_close(combined[:, :, 1, 2], voxel)


@pytest.mark.parametrize("rule", list(RULES))
def test_order_of_modalities_does_not_matter(rule):
    swapped = dict(reversed(LOGITS.items()))
    assert_close(fusion(rule).combine(LOGITS), fusion(rule).combine(swapped))


@pytest.mark.parametrize("rule", ["mean", "probabilities"])
def test_one_modality_keeps_its_probabilities(rule):
    alone = fusion(rule).combine({"a": LOGITS["a"]})
    assert_close(alone.softmax(1), torch.tensor([[0.75, 0.25]]))


def test_probabilities_are_finite_for_extreme_logits():
    extreme = {"a": torch.tensor([[300.0, -300.0]]), "b": torch.tensor([[-300.0, 300.0]])}
    assert_close(fusion("probabilities").combine(extreme).exp(), torch.tensor([[0.5, 0.5]]))


def test_energy_weights_have_no_gradient():
    logits = LOGITS["a"].clone().requires_grad_()
    fusion("energy").combine({"a": logits})[0, 0].backward()
    # the weight alone; its own derivative would add p log(3) / 10
    assert_close(logits.grad, torch.tensor([[math.log(4.0) / 10, 0.0]]))


def test_energy_is_one_confidence_per_voxel():
    assert energy(torch.zeros(2, 3, 5, 4, 4)).shape == (2, 3, 1, 4, 4)
    assert_close(energy(torch.zeros(1, 1, 5)), torch.full((1, 1, 1), math.log(5.0) / 10))


def test_values_are_averaged_or_summed():
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 6.0])}
    assert torch.equal(fusion("mean").combine(values), torch.tensor([2.0, 4.0]))
    assert torch.equal(fusion("sum").combine(values), torch.tensor([4.0, 8.0]))


@pytest.mark.parametrize("rule", ["probabilities", "energy", "entropy"])
def test_values_are_refused_by_rules_of_logits(rule):
    with pytest.raises(ValueError, match=rf"logits .* '{rule}', .* shape \(2,\).*Use 'mean'"):
        fusion(rule).combine({"a": torch.zeros(2), "b": torch.zeros(2)})


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"one of .*'energy'.* but got 'product'"):
        fusion("product")


def test_predictions_are_by_modality_and_state_is_that_of_the_heads():
    network = make_late_fused(("a", "b"))
    features = {"a": torch.randn(3, 6), "b": torch.randn(3, 6)}
    predictions = network.output_layer(features)
    for name, prediction in predictions.items():
        assert torch.equal(prediction, network.output_layer[name](features[name]))
    again = LateFusion({"a": LinearHead(), "b": LinearHead()})
    again.load_state_dict(network.output_layer.state_dict())
    assert_close(again(features), predictions)
    assert list(again.state_dict()) == [
        f"{name}.output_layer.{part}" for name in "ab" for part in ("weight", "bias")
    ]


def test_heads_share_a_last_layer_which_is_saved_once():
    layer = LateFusion({"a": LinearHead(), "b": LinearHead()}, "entropy", shared=True)
    assert layer["a"].output_layer is layer["b"].output_layer
    assert layer.shared_weight is layer["a"].output_layer.weight
    assert list(layer.state_dict()) == ["shared_weight", "shared_bias"]
    assert len(list(layer.parameters())) == 2
    copied = copy.deepcopy(layer)
    assert copied.shared_weight is copied["b"].output_layer.weight is not layer.shared_weight
    layer.to(torch.float64).to(torch.float32)
    again = LateFusion({"b": LinearHead(), "a": LinearHead()}, "entropy", shared=True)
    again.load_state_dict(layer.state_dict())
    features = {"a": torch.randn(3, 6), "b": torch.randn(3, 6)}
    assert_close(again(features), layer(features))


def test_a_network_returns_the_combination():
    network = make_late_fused(rule="sum")
    inputs, _ = late_batch(names=network.encoders)
    parts = [
        network.output_layer[name](encoder(inputs[:, index]))
        for index, (name, encoder) in enumerate(network.encoders.items())
    ]
    assert_close(network(inputs), sum(parts))


def test_a_method_that_needs_its_heads_refuses_those_of_the_network():
    method = UnimodalLosses(make_late()[1], nn.functional.cross_entropy, accuracy)
    with pytest.raises(ValueError, match="have heads of their own, and UnimodalLosses"):
        method.bind(make_late_fused())


def test_a_method_that_can_do_without_drops_its_heads():
    method = GuidedHeads(make_late()[1], nn.functional.cross_entropy, accuracy, nu=0.0)
    assert method.bind(make_late_fused()).heads is None
