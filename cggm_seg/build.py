"""Builds the network of a configuration, for training and inference; knows no head."""

from collections.abc import Sequence

from cggm_seg.cases import MODALITIES
from cggm_seg.config import NetworkConfig
from cggm_seg.networks import MultiEncoderDeepLabV3Plus


def build_network(
    config: NetworkConfig, modalities: Sequence[str] = MODALITIES, *, pretrained: bool = True
) -> MultiEncoderDeepLabV3Plus:
    """The network that a configuration describes.

    Args:
        config: The configuration.
        modalities: What the network sees, in the order of its channels.
        pretrained: Whether to load ``encoder_weights``; needless where a checkpoint follows.
    """
    return MultiEncoderDeepLabV3Plus(
        modalities,
        fusion=config.fusion,
        encoder_name=config.encoder_name,
        decoder_channels=config.decoder_channels,
        low_level_channels=config.low_level_channels,
        atrous_rates=config.atrous_rates,
        aspp_dropout=config.aspp_dropout,
        encoder_weights=config.encoder_weights if pretrained else None,
    )
