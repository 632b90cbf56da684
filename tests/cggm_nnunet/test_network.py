"""The network with an encoder for each channel: its size, its parts, absent channels."""

import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from cggm.errors import UserError
from cggm_nnunet.network import build_network, constant_channels
from tests.cggm_nnunet.plans import PATCH, architecture

KINDS = [(residual, axes) for residual in (False, True) for axes in (2, 3)]
every_kind = pytest.mark.parametrize(("residual", "axes"), KINDS)


def build(channels=3, *, deep=True, width=1.0, **kind):
    plan = architecture(**kind)
    parts = (plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"])
    network = build_network(*parts, channels, 3, deep_supervision=deep, width=width)
    planned = get_network_from_plans(*parts, channels, 3, deep_supervision=deep)
    return network, planned


@every_kind
@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_has_no_more_maps_than_the_plan_by_its_own_count(residual, axes, channels):
    network, planned = build(channels, residual=residual, axes=axes, features=(32, 64, 128, 200))
    size = PATCH[axes]
    count = sum(e.encoder.compute_conv_feature_map_size(size) for e in network.encoders)
    count += network.decoder.compute_conv_feature_map_size(size)
    limit = planned.compute_conv_feature_map_size(size)
    assert 0.85 * limit < count <= limit


@every_kind
def test_predicts_at_every_level_as_the_planned_network_does(residual, axes):
    network, planned = build(residual=residual, axes=axes)
    images = torch.randn(2, 3, *PATCH[axes])
    with torch.no_grad():
        found, wanted = network(images), planned(images)
    assert [x.shape for x in found] == [x.shape for x in wanted]
    network.decoder.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(network(images), found[0])


def test_widths_share_the_planned_ones():
    network, _ = build(4, features=(32, 64, 128, 320))
    assert network.widths == [8, 16, 32, 80]
    assert network.output_layer.in_channels == 32
    wide, _ = build(4, features=(32, 64, 128, 320), width=2.0)
    assert wide.widths == [16, 32, 64, 160]


def test_an_absent_channel_says_nothing_and_learns_nothing():
    network, _ = build(deep=False)
    images = torch.randn(2, 3, *PATCH[3])
    images[0, 1] = 0.0
    other = images.clone()
    other[0, 1] = -7.5
    assert torch.equal(network(images), network(other))
    network(images)[0].sum().backward()
    sums = [sum(p.grad.abs().sum() for p in e.parameters()) for e in network.encoders]
    assert sums[1] == 0
    assert min(sums[0], sums[2]) > 0
    assert constant_channels(images).tolist() == [[False, True, False], [False] * 3]


def test_weights_are_those_of_encoders_and_decoder_once():
    network, _ = build()
    tops = {key.partition(".")[0] for key in network.state_dict()}
    assert tops == {"encoders", "decoder"}
    assert not [key for key in network.state_dict() if key.startswith("decoder.encoder")]


def test_another_network_of_a_plan_is_refused():
    with pytest.raises(UserError, match=r"Expected a U-Net of the plan, but got .*Flat"):
        build_network(
            "tests.cggm_nnunet.test_network.Flat",
            {"features_per_stage": [8, 8]},
            [],
            2,
            3,
            deep_supervision=True,
        )


class Flat(torch.nn.Linear):
    def __init__(self, **_):
        super().__init__(1, 1)
