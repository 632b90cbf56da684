"""Building blocks that the network and the per-modality heads share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
