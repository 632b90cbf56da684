"""Unimodal ensemble: modalities that never meet, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods.ume import UnimodalEnsemble
from tests.cggm.networks import (
    Convolutional,
    ConvolutionalHead,
    LateFused,
    late_batch,
    make_late,
    make_late_fused,
)
from tests.quantifiers import every, none

BATCHES = [late_batch(seed=seed) for seed in range(4)]
cross_entropy = nn.functional.cross_entropy


def parameters(network, name):
    return [*network.encoders[name].parameters(), *network.output_layer[name].parameters()]


def train(network, criterion, batches=BATCHES, accumulation=1):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for index, (inputs, target) in enumerate(batches):
        (criterion(network(inputs), target) / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("rule", ["mean", "probabilities"])
def test_equals_unimodal_training_of_each_modality(rule):
    network = make_late_fused(rule=rule)
    alone = copy.deepcopy(network)
    train(network, UnimodalEnsemble(cross_entropy).bind(network))
    for index, name in enumerate(alone.encoders):
        encoder, head = alone.encoders[name], alone.output_layer[name]
        optimizer = torch.optim.Adam(parameters(alone, name), lr=0.01)
        for inputs, target in BATCHES:
            optimizer.zero_grad()
            cross_entropy(head(encoder(inputs[:, index])), target).backward()
            optimizer.step()
    for p, q in zip(network.parameters(), alone.parameters(), strict=True):
        assert_close(p, q)


def test_loss_is_the_sum_of_the_modalities_losses():
    network = make_late_fused()
    ensemble = UnimodalEnsemble(cross_entropy).bind(network)
    inputs, target = BATCHES[0]
    loss = ensemble(network(inputs), target)
    by_hand = torch.stack(
        [
            cross_entropy(network.output_layer[name](encoder(inputs[:, index])), target)
            for index, (name, encoder) in enumerate(network.encoders.items())
        ]
    )
    assert_close(ensemble.readings["head_loss"], by_hand.detach())
    assert_close(loss, by_hand.sum())


def test_joint_mixes_both_losses():
    network = make_late_fused()
    inputs, target = BATCHES[0]
    losses = [
        UnimodalEnsemble(cross_entropy, joint=joint).bind(network)(network(inputs), target)
        for joint in (0.0, 0.25, 1.0)
    ]
    assert_close(losses[1], 0.75 * losses[0] + 0.25 * losses[2])
    assert not torch.equal(losses[0], losses[2])


def test_neutral_setting_is_joint_training():
    network = make_late_fused()
    joint = copy.deepcopy(network)
    train(network, UnimodalEnsemble(cross_entropy, joint=1.0).bind(network))
    train(joint, cross_entropy)
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), joint.parameters(), strict=True)
    )


def test_accumulation_equals_one_large_batch():
    network = make_late_fused()
    large = copy.deepcopy(network)
    train(network, UnimodalEnsemble(cross_entropy).bind(network), BATCHES[:2], accumulation=2)
    both = [tuple(torch.cat(parts) for parts in zip(*BATCHES[:2], strict=True))]
    train(large, UnimodalEnsemble(cross_entropy).bind(large), both)
    for p, q in zip(network.parameters(), large.parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_segmentation_with_any_number_of_modalities(names):
    torch.manual_seed(0)
    network = LateFused(Convolutional(names).encoders, ConvolutionalHead, "probabilities")
    ensemble = UnimodalEnsemble(cross_entropy).bind(network)
    loss = ensemble(network(torch.randn(2, len(names), 8, 8)), torch.randint(3, (2, 8, 8)))
    loss.backward()
    assert ensemble.readings["head_loss"].shape == (len(names),)
    assert every(p.grad.abs().sum() > 0 for p in network.parameters())


def test_one_modality_is_joint_training():
    network = make_late_fused("a")
    inputs, target = late_batch(names="a")
    ensemble = UnimodalEnsemble(cross_entropy).bind(network)
    prediction = network(inputs)
    assert torch.equal(ensemble(prediction, target), cross_entropy(prediction, target))


def test_refuses_networks_that_do_not_average():
    with pytest.raises(ValueError, match=r"late-fusion network, because UME .* is Linear"):
        UnimodalEnsemble(cross_entropy).bind(make_late()[0])
    network = make_late_fused(rule="energy")
    with pytest.raises(ValueError, match=r"'probabilities' or 'mean', because .* by 'energy'"):
        UnimodalEnsemble(cross_entropy).bind(network)
    assert none(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("joint", [-0.1, 1.1, float("nan")])
def test_refuses_a_weight_out_of_range(joint):
    with pytest.raises(ValueError, match=r"`joint` in \[0, 1\]"):
        UnimodalEnsemble(cross_entropy, joint=joint)
