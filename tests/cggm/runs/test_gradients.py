"""Directions of heads and of modalities alone, against closed forms and plain autograd."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from cggm.runs.gradients import last_layer_gradients, write_gradients
from tests.cggm.networks import NAMES, Late, LinearHead, encode, late_batch
from tests.quantifiers import every


class Decomposed(Late):
    """Also has its encoders apart."""

    def encode(self, inputs):
        return encode(self, inputs)


def build(dropout=0.0):
    torch.manual_seed(0)
    network = Decomposed(dropout=dropout)
    return network, nn.ModuleDict({name: LinearHead() for name in NAMES})


def batches(count=2):
    return [late_batch(8, seed=seed) for seed in range(count)]


def closed_form(logits, hidden, target):
    """Gradient of a mean cross entropy with respect to the weight of a linear last layer."""
    error = logits.softmax(1) - one_hot(target, logits.shape[1])
    return (error.T @ hidden / len(target)).detach().flatten().numpy()


def test_heads_follow_the_closed_form():
    network, heads = build()
    vectors = last_layer_gradients(network, heads, batches(), cross_entropy)
    assert [*vectors] == [f"{kind} {name}" for name in NAMES for kind in ("head", "unimodal")]
    for name in NAMES:
        assert vectors[f"head {name}"].shape == (2, 4 * 6)
        for row, (inputs, target) in zip(vectors[f"head {name}"], batches(), strict=True):
            hidden = network.encode(inputs)[name]
            expected = closed_form(heads[name](hidden), hidden, target)
            np.testing.assert_allclose(row, expected, atol=1e-6)


def test_network_sees_one_modality_alone():
    network, heads = build()
    vectors = last_layer_gradients(network, heads, batches(), cross_entropy)
    for position, name in enumerate(NAMES):
        for row, (inputs, target) in zip(vectors[f"unimodal {name}"], batches(), strict=True):
            features = torch.zeros(8, 18)
            own = slice(6 * position, 6 * position + 6)
            features[:, own] = network.encode(inputs)[name]
            loss = cross_entropy(network.output_layer(network.fusion(features)), target)
            (expected,) = torch.autograd.grad(loss, network.output_layer.weight)
            np.testing.assert_allclose(row, expected.flatten(), atol=1e-6)


def test_network_and_heads_stay_as_they_are():
    network, heads = build(dropout=0.5)
    network.encoders["text"].eval()
    network.output_layer.weight.grad = torch.ones(4, 6)
    modules = [*network.modules(), *heads.modules()]
    modes = [module.training for module in modules]
    before = [p.clone() for p in (*network.parameters(), *heads.parameters())]
    random = torch.get_rng_state()
    first = last_layer_gradients(network, heads, batches(), cross_entropy)
    second = last_layer_gradients(network, heads, batches(), cross_entropy)
    assert every(np.array_equal(first[key], second[key]) for key in first), "no dropout"
    assert [module.training for module in modules] == modes
    after = [*network.parameters(), *heads.parameters()]
    assert every(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(network.output_layer.weight.grad, torch.ones(4, 6))
    assert sum(p.grad is not None for p in after) == 1
    assert torch.equal(torch.get_rng_state(), random)


def test_vectors_are_kept_without_pickle(tmp_path):
    vectors = {"head text": np.eye(2, 3, dtype=np.float32)}
    write_gradients(tmp_path / "gradients.npz", vectors)
    with np.load(tmp_path / "gradients.npz", allow_pickle=False) as archive:
        assert archive.files == ["head text"]
        assert np.array_equal(archive["head text"], vectors["head text"])
    assert [path.name for path in tmp_path.iterdir()] == ["gradients.npz"]
