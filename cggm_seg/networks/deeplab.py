"""The segmentation network: one DeepLabv3+ branch per modality and a fusing decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from cggm.late_fusion import LateFusion
from cggm_seg.data import MODALITIES
from cggm_seg.networks.decoders import (
    DenseFusionDecoder,
    FusionDecoder,
    ModalityFeatures,
    UnimodalDecoder,
    to_full_resolution,
)
from cggm_seg.networks.encoders import OUTPUT_STRIDE, ModalityEncoder
from cggm_seg.networks.pretrained import load_pretrained

Fusion = Literal["features", "average", "sum", "energy", "entropy"]


class MultiEncoderDeepLabV3Plus(nn.Module):
    """DeepLabv3+ with one encoder per modality, the BraTS network of CGGM (Guo et al., 2024).

    Fully convolutional: trained on crops, applied to whole slices. A missing modality is a channel
    of zeros, the value of the background. Nothing is ever downloaded.

    Args:
        modalities: Names of the input channels in order; one encoder each.
        encoder_name: See ``ModalityEncoder``; ``resnet101`` is the paper's.
        fusion: ``"features"``, fused by one decoder, or how the predictions of a full decoder for
            each modality are combined: ``"average"`` of their probabilities, ``"sum"`` of their
            logits, or weighted by their ``"energy"``, see :class:`cggm.late_fusion.LateFusion`.
        classes: Number of classes, the background included.
        decoder_channels: Channels of the ASPP feature, the decoder and the output layer's input.
        low_level_channels: Channels of the stride-4 skip of each modality.
        atrous_rates: Dilations of the ASPP.
        aspp_dropout: Dropout probability after the ASPP.
        dense: Whether ASPP and decoder are the authors' dense ones, see ``ModalityEncoder``; with
            resnet101 and four modalities 235.23 million parameters.
        encoder_weights: State dict of an smp encoder (safetensors or torch) loaded into every
            encoder. Weights of an RGB first convolution are summed over the colors.

    Raises:
        UserError: If the encoder or its weights cannot be used.
        ValueError: If no modality is named, or one twice.
    """

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        *,
        encoder_name: str = "resnet101",
        fusion: Fusion = "features",
        classes: int = 4,
        decoder_channels: int = 256,
        low_level_channels: int = 48,
        atrous_rates: tuple[int, int, int] = (2, 4, 6),
        aspp_dropout: float = 0.5,
        dense: bool = False,
        encoder_weights: Path | None = None,
    ) -> None:
        super().__init__()
        if not modalities or len(set(modalities)) != len(modalities):
            raise ValueError(f"Expected `modalities` to be distinct names, but got {modalities!r}.")
        self.modalities = tuple(modalities)
        self.classes = classes
        self.decoder_channels = decoder_channels
        self.encoders = nn.ModuleDict(
            {
                name: ModalityEncoder(
                    encoder_name,
                    decoder_channels,
                    low_level_channels,
                    atrous_rates,
                    aspp_dropout,
                    dense,
                )
                for name in modalities
            }
        )
        first = cast(ModalityEncoder, next(iter(self.encoders.values())))
        self.low_level_channels = first.low_channels
        self.output_layer: nn.Conv2d | LateFusion
        if fusion == "features":
            sizes = (len(modalities), decoder_channels, low_level_channels)
            self.decoder = _decoder(*sizes, first.low_channels if dense else None)
            self.output_layer = nn.Conv2d(decoder_channels, classes, kernel_size=1)
        else:
            heads = {
                name: UnimodalDecoder(decoder_channels, first.low_channels, classes, light=False)
                for name in modalities
            }
            rule = "probabilities" if fusion == "average" else fusion
            self.output_layer = LateFusion(heads, rule, shared=rule == "entropy")
        if encoder_weights is not None:
            for encoder in self.encoders.values():
                load_pretrained(cast(ModalityEncoder, encoder).encoder, encoder_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape ``(B, classes, H, W)``, float32 also under autocast.

        Args:
            images: Z-scored slices, shape ``(B, M, H, W)``; H and W multiples of 16.

        Raises:
            ValueError: If the shape does not fit, or B is 1 while BatchNorm trains.
        """
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        """Features of each modality, see ``ModalityEncoder``; arguments as in ``forward``."""
        self._check(images)
        return {
            name: encoder(images[:, channel : channel + 1])
            for channel, (name, encoder) in enumerate(self.encoders.items())
        }

    def decode(self, features: ModalityFeatures) -> Tensor:
        """Logits from the features of all modalities in order, see ``forward``."""
        if isinstance(self.output_layer, LateFusion):
            return self.output_layer.combine(self.output_layer(features))
        logits: Tensor = _eager_full_resolution(self.output_layer(self.decoder(features)))
        return logits

    def _check(self, images: Tensor) -> None:
        _, channels, height, width = images.shape
        if channels != len(self.modalities):
            raise ValueError(
                f"Expected {len(self.modalities)} channels {self.modalities}, but got {channels}. "
                "Fill the channel of a missing modality with zeros."
            )
        if height % OUTPUT_STRIDE or width % OUTPUT_STRIDE:
            raise ValueError(
                f"Expected height and width to be multiples of {OUTPUT_STRIDE}, but got "
                f"{height}x{width}. Pad the slices with zeros or use predict_volume, which does."
            )


def _decoder(modalities: int, channels: int, low: int, raw: int | None) -> nn.Module:
    """The decoder of all modalities; dense where the channels of raw stride-4 features are told."""
    if raw is None:
        return FusionDecoder(modalities, channels, low)
    return DenseFusionDecoder(modalities, channels, raw, low)


# The direction loss of CGGM differentiates the gradient between the loss and the output layer once
# more, which a compiled graph does not support.
@torch.compiler.disable
def _eager_full_resolution(logits: Tensor) -> Tensor:
    return to_full_resolution(logits)
