import math

import pytest
import torch
from torch import nn

from cggm_cls.data.sequences import MaskedSequence
from cggm_cls.networks.layers import (
    AttentionLayer,
    AttentionStack,
    Dropout,
    Dropouts,
    SequenceEncoder,
    append_token,
    sinusoids,
)

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors


def sequence(width=8):
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    return MaskedSequence(torch.randn(3, 5, width), mask)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    dropped = Dropout(probability)(torch.ones(500, 401))
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * math.sqrt(0.25 / dropped.numel()))
    assert dropped.max().item() == pytest.approx(1 / (1 - probability), rel=1e-4)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    kept = (dropped != 0).float().flatten()
    for lag in (1, 2, 3, 4, 401):  # elements that share a random number are independent too
        pairs = torch.stack([kept[lag:], kept[:-lag]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 0.015


def test_dropout_drops_the_same_elements_of_the_gradient():
    values = torch.randn(3, 7, 5).transpose(0, 1).requires_grad_()
    dropped = Dropout(0.4)(values)
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(dropped, values * gradient)
    assert 0 < (gradient == 0).sum() < gradient.numel()


def test_dropout_follows_the_seed():
    layer, values = Dropout(0.5), torch.randn(4, 9)
    torch.manual_seed(3)
    first, second = layer(values), layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert not torch.equal(first, second)


def test_dropout_of_nothing_everything_and_in_eval_mode():
    values = torch.randn(4, 9)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(4, 9))
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert Dropout(0.5)(values.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("attention_heads", [1, 4])
def test_layer_equals_that_of_torch_in_outputs_and_gradients(attention_heads):
    values, mask = sequence()
    layer = AttentionLayer(8, attention_heads, dropout=0.0)
    parameters = list(layer.parameters())
    weights = torch.randn(3, 5, 8) * mask[..., None]
    ours = layer(values, mask)
    torchs = nn.TransformerEncoderLayer.forward(layer, values, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], torchs[mask])
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((torchs * weights).sum(), parameters),
        rtol=1e-4,
        atol=1e-5,
    )


def test_asking_for_some_steps_equals_asking_for_all():
    values, mask = sequence()
    values.requires_grad_()
    layer = AttentionLayer(8, 2, dropout=0.0)
    asked = [layer(values, mask)[:, 3:], layer(values, mask, values[:, 3:])]
    weights = torch.randn(3, 2, 8)
    gradients = [
        torch.autograd.grad((a * weights).sum(), [values, *layer.parameters()]) for a in asked
    ]
    torch.testing.assert_close(asked[0], asked[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_layer_drops_all_that_it_says_and_no_attention_weight():
    layer = AttentionLayer(8, 2, dropout=0.3)
    rates = [module.p for module in layer.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.3, 0.3, 0.3]
    assert layer.self_attn.dropout == 0
    values, mask = sequence()
    assert not torch.equal(layer(values, mask), layer(values, mask))


def test_dropout_by_place():
    rates = {"attention": 0.5, "hidden": 0.1, "embedding": 0.2, "residual": 0.3}
    encoder = SequenceEncoder(4, 8, 1, 2, rates)
    layer = encoder.stack.layers[0]
    assert (encoder.dropout.p, layer.dropout.p) == (0.2, 0.1)
    assert (layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout) == (0.3, 0.3, 0.5)
    assert Dropouts.of(0.1) == Dropouts(0.0, 0.1, 0.1, 0.1, 0.1)
    assert Dropouts.of(rates).output == 0


def test_attention_weights_are_dropped_where_it_is_said_in_training_alone():
    layer = AttentionLayer(8, 2, {"attention": 0.5})
    values, mask = sequence()
    assert not torch.equal(layer(values, mask), layer(values, mask))
    kept = AttentionLayer(8, 2, 0.0)
    kept.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(values, mask), kept(values, mask))


@pytest.mark.parametrize("rates", [1.0, {"hidden": -0.1}, {"heads": 0.1}])
def test_wrong_dropout_is_named(rates):
    with pytest.raises(
        ValueError, match="Expected dropout from 0 to below 1, or that of attention"
    ):
        Dropouts.of(rates)


@pytest.mark.parametrize(
    ("readout", "steps"), [("token", [4, 4, 4]), ("first", [0, 1, 4]), ("mean", None)]
)
def test_readouts_are_steps_of_the_whole_stack(readout, steps):
    stack = AttentionStack(3, 8, 2, dropout=0.0)
    values, mask = sequence()
    everything = stack(MaskedSequence(values, mask)).values
    if steps is None:
        expected = torch.stack(
            [row[real].mean(0) for row, real in zip(everything, mask, strict=True)]
        )
    else:
        expected = everything[torch.arange(3), steps]
    torch.testing.assert_close(stack.read(MaskedSequence(values, mask), readout), expected)


def test_layers_of_a_stack_start_different():
    first, second = AttentionStack(2, 8, 2, dropout=0.0).layers
    for name, parameter in first.named_parameters():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, second.get_parameter(name))


def test_token_is_real_and_last():
    values, mask = append_token(torch.zeros(2, 3, 4), torch.zeros(2, 3).bool(), torch.arange(4.0))
    assert torch.equal(values[:, -1], torch.arange(4.0).expand(2, 4))
    assert mask.tolist() == [[False, False, False, True]] * 2


def test_sinusoids_count_real_steps():
    encoded = sinusoids(torch.tensor([[False, True, False, True], [True, True, False, False]]), 4)
    origin = [0.0, 0.0, 1.0, 1.0]
    second = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    for row, column, expected in [(0, 1, origin), (0, 3, second), (1, 0, origin), (1, 1, second)]:
        assert encoded[row, column].tolist() == pytest.approx(expected)
    odd, even = (sinusoids(torch.ones(1, 4).bool(), width) for width in (5, 6))
    assert torch.equal(odd, even[..., :5])
