"""The encoder of one modality: an smp encoder at output stride 16 with an ASPP."""

from collections.abc import Sequence
from textwrap import shorten
from typing import cast

import torch
from torch import Tensor, nn

from cggm.errors import UserError
from cggm_seg.networks.blocks import ASPP, SeparableConv2d, get_encoder
from cggm_seg.networks.decoders import conv_norm_relu

OUTPUT_STRIDE = 16
LOW_LEVEL = 2  # smp lists features by halvings of the size: entry 2 has stride 4


class ModalityEncoder(nn.Module):
    """Encoder of one modality: an smp encoder at output stride 16, ASPP and a low-level projection.

    Args:
        encoder_name: Any smp encoder that supports output stride 16, timm ones as ``tu-<name>``.
        high_channels: Channels of the ASPP feature.
        low_level_channels: Channels of the stride-4 feature.
        atrous_rates: Dilations of the ASPP. Rates beyond 9 are plain 1x1 convolutions on the
            10x10 map of a 160x160 slice.
        aspp_dropout: Dropout probability after the ASPP.
        dense: Whether the ASPP has dense convolutions and the last stage of a ResNet dilations of
            2, 4 and 8, and the stride-4 feature is left as the encoder gives it, as in the authors'
            network.

    Raises:
        UserError: If the encoder is unknown or has no output stride 16.
    """

    def __init__(
        self,
        encoder_name: str,
        high_channels: int,
        low_level_channels: int,
        atrous_rates: tuple[int, int, int],
        aspp_dropout: float,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = _strided_encoder(encoder_name)
        channels = cast(Sequence[int], self.encoder.out_channels)
        self.aspp = ASPP(
            channels[-1], high_channels, atrous_rates, separable=not dense, dropout=aspp_dropout
        )
        self.low_channels = channels[LOW_LEVEL] if dense else low_level_channels
        self.high: nn.Module
        self.low: nn.Module
        if dense:
            self.high, self.low = nn.Identity(), nn.Identity()
            _set_multigrid(self.encoder)
            return
        self.high = nn.Sequential(
            SeparableConv2d(high_channels, high_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(high_channels),
            nn.ReLU(),
        )
        self.low = conv_norm_relu(channels[LOW_LEVEL], low_level_channels, kernel_size=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of one modality.

        Args:
            images: Z-scored slices, shape ``(B, 1, H, W)``.

        Returns:
            ``high`` of shape ``(B, high_channels, H / 16, W / 16)`` and ``low`` of shape
            ``(B, low_level_channels, H / 4, W / 4)``.

        Raises:
            ValueError: If B is 1 while BatchNorm trains.
        """
        self._check_batch(images)
        features = self.encoder(images)
        return {"high": self.high(self.aspp(features[-1])), "low": self.low(features[LOW_LEVEL])}

    def _check_batch(self, images: Tensor) -> None:
        pooling = cast(nn.Sequential, cast(nn.ModuleList, self.aspp.convs)[-1])
        norm = pooling[2]
        # In this order, and not by len(): torch.export would fix the batch size.
        if type(norm) is nn.BatchNorm2d and norm.training and images.shape[0] == 1:
            raise ValueError(
                "Expected a batch of at least 2 slices in training, but got 1: BatchNorm after the "
                "global pooling has one value per channel. Use a larger batch or drop the last one."
            )


def _set_multigrid(encoder: nn.Module) -> None:
    """Give the three blocks of a ResNet's last stage dilations of 2, 4 and 8."""
    blocks = getattr(encoder, "layer4", ())
    for block, dilation in zip(blocks, (2, 4, 8), strict=False):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def _strided_encoder(name: str) -> nn.Module:
    fix = "Use a convolutional smp encoder such as resnet101, resnet18 or tu-regnetx_002."
    if ":" in name:  # timm would fetch what follows tu-hf-hub:
        what = f"Encoder {name!r} cannot be built: it names a place to fetch an encoder from."
        raise UserError(what, fix)
    try:
        encoder = get_encoder(name, in_channels=1, output_stride=OUTPUT_STRIDE, weights=None)
        with torch.no_grad():
            features = encoder.eval()(torch.zeros(1, 1, 64, 64))
    except Exception as error:  # smp and timm refuse with KeyError, TypeError, AssertionError, ...
        raise UserError(
            f"Encoder {name!r} cannot be built with output stride {OUTPUT_STRIDE}: "
            f"{shorten(repr(error), 200)}.",
            fix,
        ) from error
    strides = [64 // feature.shape[-1] for feature in (features[LOW_LEVEL], features[-1])]
    if strides != [4, OUTPUT_STRIDE]:
        raise UserError(
            f"Expected encoder {name!r} to have features of strides 4 and {OUTPUT_STRIDE}, but got "
            f"{strides}.",
            fix,
        )
    return cast(nn.Module, encoder.train())
