import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cggm_cls.data.sequences import MaskedSequence
from cggm_cls.networks.transformer import MultimodalTransformer, sequence_heads
from tests.cggm_cls.padding import PADDINGS, padded, ragged
from tests.quantifiers import every

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
WIDTHS = {"text": 6, "audio": 3}
LENGTHS = {"text": [4, 2, 5, 0], "audio": [7, 1, 0, 3]}


def small_network(classes=3, **settings):
    torch.manual_seed(0)
    settings = {
        "width": 8,
        "attention_heads": 2,
        "encoder_layers": 1,
        "fusion_layers": 1,
    } | settings
    return MultimodalTransformer(WIDTHS, classes, **settings)


def small_inputs(padding="end"):
    return {name: padded(s, padding) for name, s in ragged(WIDTHS, LENGTHS).items()}


def flops(module, inputs):
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("readout", ["token", "first", "mean"])
@pytest.mark.parametrize("classes", [None, 1, 3])
def test_heads_follow_the_network(classes, readout, layers):
    network = small_network(classes, readout=readout)
    heads = sequence_heads(network, layers=layers)
    assert list(heads) == list(network.encoders)
    prediction = network(small_inputs())
    for name, encoded in network.encode(small_inputs()).items():
        head = heads[name]
        assert head(encoded).shape == prediction.shape
        assert head.output_layer.weight.shape == network.output_layer.weight.shape
        assert len(head.stack.layers) == layers
        owners = [m for m in head.modules() if list(m.parameters(recurse=False))]
        assert owners[-1] is head.output_layer


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("readout", ["token", "first", "mean"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_changes_nothing(padding, readout, layers):
    network = small_network(readout=readout, dropout=0.0)
    heads = sequence_heads(network, layers=layers)
    before, after = network.encode(small_inputs()), network.encode(small_inputs(padding))
    for name, head in heads.items():
        torch.testing.assert_close(head(after[name]), head(before[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", ["token", "first", "mean"])
def test_every_parameter_of_a_head_is_trained_and_the_network_spared(readout):
    network = small_network(readout=readout)
    head = sequence_heads(network)["audio"]
    values, mask = network.encode(small_inputs())["audio"]
    head(MaskedSequence(values.detach(), mask)).square().mean().backward()
    assert every(parameter.grad is not None for parameter in head.parameters())
    assert every(parameter.grad is None for parameter in network.parameters())


def test_heads_drop_as_the_network_where_they_are_told_to():
    network = small_network(dropout={"hidden": 0.1, "residual": 0.2, "output": 0.3})
    for told in (False, True):
        for head in sequence_heads(network, layers=2, dropout=told).values():
            for layer in head.stack.layers:
                found = (layer.dropout.p, layer.dropout1.p, layer.dropout2.p)
                assert found == ((0.1, 0.2, 0.2) if told else (0, 0, 0))


def test_heads_start_different():
    text, audio = sequence_heads(small_network()).values()
    assert not torch.equal(text.output_layer.weight, audio.output_layer.weight)


def test_a_head_of_one_layer_is_nearly_free():
    network = MultimodalTransformer({"text": 300}, None).eval()
    inputs = {"text": padded([torch.randn(50, 300)] * 2)}
    encoded = network.encode(inputs)["text"]
    one, two = (sequence_heads(network, layers=layers)["text"] for layers in (1, 2))
    assert flops(one, encoded) < 0.03 * flops(network, inputs)
    # the released code's size of a head
    assert sum(p.numel() for p in two.parameters()) == 41_201 - 40 * 41


def test_regression_heads_do_not_broadcast():
    network = small_network(classes=None)
    head = sequence_heads(network)["text"]
    encoded = network.encode(small_inputs())["text"]
    target = torch.zeros(4)
    assert F.l1_loss(head(encoded), target, reduction="none").shape == (4,)


def test_network_state_holds_no_head():
    network = small_network()
    names = set(network.state_dict())
    sequence_heads(network)
    assert set(network.state_dict()) == names
    assert {name.split(".")[0] for name in names} == {"encoders", "fusion", "output_layer"}
