"""Decoders of the segmentation network: of all modalities together, and of one alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cggm_seg.networks.blocks import SeparableConv2d


def conv_norm_relu(in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def upsample(feature: Tensor) -> Tensor:
    """Fourfold bilinear upsampling, ``(B, C, H, W)`` -> ``(B, C, 4 H, 4 W)``.

    Corners are not aligned: the sampling grid must not depend on the size, because the network is
    trained on crops and applied to whole slices.
    """
    return F.interpolate(feature, scale_factor=4.0, mode="bilinear", align_corners=False)


def to_full_resolution(logits: Tensor) -> Tensor:
    """Stride-4 logits at full resolution, in float32 also under autocast."""
    return upsample(logits.to(torch.promote_types(logits.dtype, torch.float32)))


ModalityFeatures = Mapping[str, Mapping[str, Tensor]]
"""Modality to what its encoder returns, in the order of the network's modalities."""


class FusionDecoder(nn.Module):
    """Concatenates the features of all modalities and decodes them to stride 4.

    Args:
        modalities: How many modalities are fused.
        decoder_channels: Channels of each ``high`` feature and of the result.
        low_level_channels: Channels of each ``low`` feature.
    """

    def __init__(self, modalities: int, decoder_channels: int, low_level_channels: int) -> None:
        super().__init__()
        self.high = nn.Sequential(
            conv_norm_relu(modalities * decoder_channels, decoder_channels, kernel_size=1),
            conv_norm_relu(decoder_channels, decoder_channels, kernel_size=3),
        )
        self.fuse = nn.Sequential(
            conv_norm_relu(
                decoder_channels + modalities * low_level_channels, decoder_channels, kernel_size=3
            ),
            conv_norm_relu(decoder_channels, decoder_channels, kernel_size=3),
        )

    def forward(self, features: ModalityFeatures) -> Tensor:
        """Fused feature of shape ``(B, decoder_channels, H / 4, W / 4)``.

        Args:
            features: What :class:`cggm_seg.networks.encoders.ModalityEncoder` returns, by modality.
        """
        high = self.high(torch.cat([feature["high"] for feature in features.values()], dim=1))
        low = [feature["low"] for feature in features.values()]
        fused: Tensor = self.fuse(torch.cat([upsample(high), *low], dim=1))
        return fused


class DenseFusionDecoder(nn.Module):
    """The authors' decoder: stride-4 features squeezed together, then two dense 3x3 convolutions.

    Args:
        modalities: How many modalities are fused.
        decoder_channels: Channels of each ``high`` feature and of the result.
        low_channels: Channels of each ``low`` feature.
        squeezed: Channels that all ``low`` features together are squeezed to.
    """

    def __init__(
        self, modalities: int, decoder_channels: int, low_channels: int, squeezed: int
    ) -> None:
        super().__init__()
        self.low = conv_norm_relu(modalities * low_channels, squeezed, kernel_size=1)
        joined = modalities * decoder_channels + squeezed
        self.fuse = nn.Sequential(
            conv_norm_relu(joined, decoder_channels, kernel_size=3),
            nn.Dropout(0.5),
            conv_norm_relu(decoder_channels, decoder_channels, kernel_size=3),
            nn.Dropout(0.1),
        )

    def forward(self, features: ModalityFeatures) -> Tensor:
        """Fused feature of shape ``(B, decoder_channels, H / 4, W / 4)``.

        Args:
            features: What :class:`cggm_seg.networks.encoders.ModalityEncoder` returns, by modality.
        """
        high = torch.cat([feature["high"] for feature in features.values()], dim=1)
        low = self.low(torch.cat([feature["low"] for feature in features.values()], dim=1))
        fused: Tensor = self.fuse(torch.cat([upsample(high), low], dim=1))
        return fused


class UnimodalDecoder(nn.Module):
    """Decoder of one modality: predicts the segmentation from that modality's features alone.

    The light decoder projects both features linearly before it upsamples and adds them, which
    equals a 1x1 convolution of their concatenation at a fraction of the cost. The full one is a
    DeepLabv3+ decoder, two separable 3x3 convolutions at stride 4; the released code's are dense.

    Args:
        decoder_channels: Channels of the ``high`` feature and of the output layer's input.
        low_level_channels: Channels of the ``low`` feature.
        classes: Number of classes, the background included.
        light: Whether to use the light decoder.
    """

    def __init__(
        self,
        decoder_channels: int,
        low_level_channels: int,
        classes: int,
        *,
        light: bool = True,
    ) -> None:
        super().__init__()
        fuse = _LightFusion if light else _FullFusion
        self.fusion = fuse(decoder_channels, low_level_channels)
        self.output_layer = nn.Conv2d(decoder_channels, classes, kernel_size=1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits of shape ``(B, classes, H, W)``.

        Args:
            features: ``high`` of shape ``(B, decoder_channels, H / 16, W / 16)`` and ``low`` of
                shape ``(B, low_level_channels, H / 4, W / 4)``; detach them to spare the encoder.
        """
        return to_full_resolution(self.output_layer(self.fusion(features["high"], features["low"])))


class _LightFusion(nn.Module):
    def __init__(self, decoder_channels: int, low_level_channels: int) -> None:
        super().__init__()
        self.high = nn.Sequential(
            SeparableConv2d(decoder_channels, decoder_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(decoder_channels),
        )
        self.low = nn.Conv2d(low_level_channels, decoder_channels, kernel_size=1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        # Stride 4 is bound by memory traffic: BatchNorm stays at stride 16, ReLU works in place.
        return F.relu(upsample(self.high(high)) + self.low(low), inplace=True)


class _FullFusion(nn.Module):
    def __init__(self, decoder_channels: int, low_level_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            _separable(decoder_channels + low_level_channels, decoder_channels),
            _separable(decoder_channels, decoder_channels),
        )

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        fused: Tensor = self.convs(torch.cat([upsample(high), low], dim=1))
        return fused


def _separable(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        SeparableConv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
