import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.networks.encoders import ModalityEncoder
from cggm_seg.training.balancing import UnimodalDecoder, unimodal_heads
from tests.quantifiers import every

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors


def small_network(**settings):
    return MultiEncoderDeepLabV3Plus(
        ("t2", "flair"),
        encoder_name="tu-mobilenetv3_small_050",
        decoder_channels=16,
        low_level_channels=8,
        **settings,
    )


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module, *inputs):
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("light", [True, False])
def test_heads_follow_the_network(light):
    network = small_network(classes=3)
    heads = unimodal_heads(network, light=light)
    assert list(heads) == list(network.encoders)
    features = network.encode(torch.randn(2, 2, 32, 48))
    for name, head in heads.items():
        assert head(features[name]).shape == (2, 3, 32, 48)
        assert head.output_layer.weight.shape == network.output_layer.weight.shape
        layers = [m for m in head.modules() if list(m.parameters(recurse=False))]
        assert layers[-1] is head.output_layer


@pytest.mark.parametrize("light", [True, False])
def test_head_logits_are_upsampled_output_layer(light):
    network = small_network()
    head = unimodal_heads(network, light=light)["t2"].eval()
    seen = []
    head.output_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = head(network.eval().encode(torch.randn(1, 2, 32, 32))["t2"])
    upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, upsample(seen[0]))


@pytest.mark.parametrize("light", [True, False])
def test_heads_leave_detached_features_as_they_were(light):
    head = UnimodalDecoder(16, 8, 4, light=light)
    features = {"high": torch.randn(2, 16, 2, 2), "low": torch.randn(2, 8, 8, 8)}
    before = {key: value.clone() for key, value in features.items()}
    head(features).square().mean().backward()
    assert every(torch.equal(features[key], before[key]) for key in features)
    assert every(parameter.grad is not None for parameter in head.parameters())


def test_light_head_at_full_size_is_small_and_cheap():
    with torch.device("meta"):  # counts operations without doing them
        encoder = ModalityEncoder("resnet101", 256, 48, (2, 4, 6), 0.5)
        features = {"high": torch.randn(2, 256, 10, 10), "low": torch.randn(2, 48, 40, 40)}
        light, full = (UnimodalDecoder(256, 48, 4, light=light) for light in (True, False))
        images = torch.randn(2, 1, 160, 160)
    assert parameters(light) <= 0.3e6
    # 304 * (9 + 256) + 256 * (9 + 256) weights, 4 * 256 of BatchNorm, 4 * 257 of the last layer
    assert parameters(full) == 150_452
    assert flops(light, features) <= 0.01 * flops(encoder, images)


def test_network_state_holds_no_head():
    network = small_network()
    names = set(network.state_dict())
    unimodal_heads(network)
    assert set(network.state_dict()) == names
    assert {name.split(".")[0] for name in names} == {"encoders", "decoder", "output_layer"}
