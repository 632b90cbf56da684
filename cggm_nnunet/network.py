"""U-Net with one encoder for each channel, built of the parts that nnU-Net has planned."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from cggm.errors import UserError


class ChannelEncoder(nn.Module):
    """Encoder of one channel, silent where the channel holds nothing.

    Args:
        encoder: Returns the maps of its stages, finest first.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps of all stages, zeros for samples whose image is constant.

        A tuple, because a list with as many stages as samples reads like one entry per sample.

        Args:
            image: Shape ``(B, 1, *S)``.
        """
        told = ~constant_channels(image)
        return tuple(
            stage * told.to(stage.dtype).reshape(-1, *[1] * (stage.ndim - 1))
            for stage in self.encoder(image)
        )


class ModalityUNet(nn.Module):
    """nnU-Net's U-Net whose encoders see one channel each and meet in the skips of every stage.

    The maps of a stage are concatenated, and nnU-Net's own decoder takes them as it takes those of
    a single encoder. A channel that is constant in a patch counts as absent: its encoder gives
    zeros.

    Args:
        encoders: One for each channel, in their order.
        decoder: nnU-Net's, for the widths of all encoders together.
    """

    def __init__(self, encoders: Sequence[nn.Module], decoder: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(map(ChannelEncoder, encoders))
        self.decoder = decoder

    @property
    def output_layer(self) -> nn.Module:
        """The 1x1 convolution that predicts at full resolution."""
        layers: Any = self.decoder.seg_layers
        last: nn.Module = layers[-1]
        return last

    @property
    def widths(self) -> list[int]:
        """Channels of one encoder's stages, finest first."""
        encoder: Any = self.encoders[0].encoder
        return [int(width) for width in encoder.output_channels]

    def decode(self, features: Mapping[str, Sequence[Tensor]]) -> Any:  # noqa: ANN401
        """The prediction from what the encoders return.

        Args:
            features: Modality to the maps of its stages, in the order of the channels.

        Returns:
            Logits ``(B, C, *S)``, or with deep supervision a list of them, finest first.
        """
        return self.decoder([torch.cat(maps, 1) for maps in zip(*features.values(), strict=True)])

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401
        """The prediction.

        Args:
            images: One channel per modality, shape ``(B, M, *S)``.
        """
        single = images.split(1, 1)
        features = {
            str(i): e(x) for i, (e, x) in enumerate(zip(self.encoders, single, strict=True))
        }
        return self.decode(features)


def constant_channels(images: Tensor) -> Tensor:
    """Which channels of which samples hold one value alone, bool, ``(B, M)``.

    Args:
        images: Shape ``(B, M, *S)``.
    """
    flat = images.flatten(2)
    return flat.amax(2) == flat.amin(2)


def build_network(
    class_name: str,
    settings: Mapping[str, Any],
    imported: Sequence[str],
    channels: int,
    classes: int,
    *,
    deep_supervision: bool,
    width: float = 1.0,
) -> ModalityUNet:
    """Build the network of a plan with an encoder for each channel.

    Every stage of each of the M encoders has 1/M of the planned width, times ``width``. At 1, all
    encoders together have as many maps of each size as the planned encoder, and the decoder is the
    planned one, so that by nnU-Net's own count of maps, which its planning keeps to the memory of
    the GPU, the network takes no more. Its encoders have 1/M of the planned weights.

    Args:
        class_name: ``architecture.network_class_name`` of the plan.
        settings: ``arch_kwargs`` of the plan.
        imported: Which of these name objects to be imported.
        channels: Number of modalities.
        classes: Number of output channels.
        deep_supervision: Whether the network returns a prediction for each stage.
        width: Factor on the widths of the encoders, for those who have memory left.

    Raises:
        UserError: If the planned network is no U-Net with an encoder and a decoder.
    """
    planned = settings["features_per_stage"]
    own = [max(1, int(width * features / channels)) for features in planned]

    def part(features: Sequence[int]) -> Any:  # noqa: ANN401
        parts = {**settings, "features_per_stage": list(features)}
        return get_network_from_plans(
            class_name, parts, imported, 1, classes, deep_supervision=deep_supervision
        )

    whole = part([channels * features for features in own])
    decoder: Any = getattr(whole, "decoder", None)
    if not hasattr(decoder, "seg_layers") or not hasattr(whole, "encoder"):
        raise UserError(
            f"Expected a U-Net of the plan, but got {class_name} without encoder or decoder.",
            "Plan with nnUNetPlans or with one of the residual encoder presets.",
        )
    kept = {n: getattr(whole.encoder, n) for n in ("strides", "output_channels", "kernel_sizes")}
    del decoder.encoder  # of which it needs the sizes alone, and whose weights would be saved
    decoder.encoder = SimpleNamespace(**kept)
    return ModalityUNet([part(own).encoder for _ in range(channels)], decoder)
