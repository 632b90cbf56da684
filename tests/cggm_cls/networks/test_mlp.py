"""Perceptrons by numbers worked out by hand, and what they promise as networks for balancing."""

import pytest
import torch
from torch import nn

from cggm.methods import CGGM
from cggm_cls.data.sequences import MaskedSequence
from cggm_cls.networks.mlp import MultimodalMLP, RowEncoder
from cggm_cls.networks.transformer import sequence_heads

WIDTHS = {"lab": 2, "ecg": 3}


def inputs(batch=4, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: MaskedSequence(
            torch.randn(batch, steps, width, generator=generator),
            torch.rand(batch, steps, generator=generator) < 0.6,
        )
        for name, width in WIDTHS.items()
    }


def test_real_steps_are_averaged_and_an_empty_sequence_is_the_learned_vector():
    encoder = RowEncoder(2, 2, layers=1, dropout=0.0)
    layer = encoder.layers[0]
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        layer.linear.bias.zero_()
    values = torch.tensor([[[3.0, 1.0], [0.0, 2.0], [9.0, 9.0]]]).repeat(2, 1, 1)
    mask = torch.tensor([[True, True, False], [False] * 3])
    encoded = encoder(MaskedSequence(values, mask))
    # Normalized, (3, 1) is (1, -1) and (0, 2) is (-1, 1); rectified and averaged (1/2, 1/2).
    assert encoded[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    assert torch.equal(encoded[1], encoder.absent)


def test_padding_is_never_looked_at():
    network = MultimodalMLP(WIDTHS, 3).eval()
    given = inputs()
    other = {
        name: x._replace(values=torch.where(x.mask[..., None], x.values, 1e3))
        for name, x in given.items()
    }
    torch.testing.assert_close(network(given), network(other))


@pytest.mark.parametrize("fusion", ["features", "average", "sum"])
@pytest.mark.parametrize("classes", [3, None])
def test_predictions_have_the_shape_of_the_task(fusion, classes):
    network = MultimodalMLP(WIDTHS, classes, fusion=fusion, fusion_layers=2)
    shape = (4,) if classes is None else (4, 3)
    assert network(inputs()).shape == shape
    assert network.decode(network.encode(inputs())).shape == shape
    for name, head in sequence_heads(network, layers=2).items():
        assert head(network.encode(inputs())[name]).shape == shape
        assert head.output_layer.weight.shape == (classes or 1, 40)


def test_heads_draw_no_random_number():
    network = MultimodalMLP(WIDTHS, 3)
    heads = sequence_heads(network)
    encoded = network.encode(inputs())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name, head in heads.items():
        head.train()(encoded[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_an_encoder_that_is_scaled_gets_that_share_of_its_gradient():
    def gradients(rho):
        torch.manual_seed(0)
        network = MultimodalMLP(WIDTHS, 3, dropout=0.0)
        loss = nn.CrossEntropyLoss()
        heads = sequence_heads(network)
        score = lambda p, t: (p.argmax(1) == t).float().mean()  # noqa: E731
        balancer = CGGM(heads, loss, score, rho=rho, lam=0.0, gate=None).bind(network)
        balancer(network(inputs()), torch.tensor([0, 1, 2, 0])).backward()
        layer = network.encoders["lab"].layers[0].linear
        return [layer.weight.grad, layer.bias.grad]

    # Before anything was measured every term is rho (M - 1) / M, half of rho for two modalities.
    once, twice = gradients(1.0), gradients(2.0)
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * one, two)


def test_wrong_inputs_are_named():
    network = MultimodalMLP(WIDTHS, 3)
    with pytest.raises(ValueError, match="steps of 3 features in modality 'ecg', but got 2"):
        network({**inputs(), "ecg": inputs()["lab"]})
    with pytest.raises(ValueError, match="at least one modality"):
        MultimodalMLP({}, 3)
