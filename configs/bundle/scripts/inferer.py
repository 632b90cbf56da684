"""From z-scored volumes to logits, slice by slice."""

import torch
from monai.inferers.inferer import Inferer
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch.nn import functional as F

STRIDE = 16
SMALLEST = 32


class BrainSliceInferer(Inferer):
    """Applies a network for axial slices to volumes.

    Slices are cut to the box around the brain, on the 16-voxel grid of the whole slice, and padded
    with zeros to multiples of 16. Slices without brain, and all outside the box, are background.

    Args:
        batch_size: Slices at once.
    """

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Logits of shape ``(1, C, H, W, Z)``.

        Args:
            inputs: One volume, z-scores with background exactly 0, shape ``(1, M, H, W, Z)``.
            network: Maps ``(B, M, h, w)`` to ``(B, C, h, w)``.

        Raises:
            ValueError: If all voxels are zero.
        """
        volume: torch.Tensor = convert_to_tensor(inputs, track_meta=False)[0]
        brain = (volume != 0).any(0)
        if not brain.any():
            raise ValueError("Expected a brain, but all voxels are zero.")
        rows, columns = _on_grid(brain.any(2).any(1)), _on_grid(brain.any(2).any(0))
        planes = brain.flatten(0, 1).any(0).nonzero()[:, 0]
        slices = volume[:, rows, columns][..., planes].permute(3, 0, 1, 2)  # (Z, M, h, w)
        height, width = slices.shape[2:]
        padded = F.pad(slices, (0, _padding(width), 0, _padding(height)))
        parts = [network(part)[..., :height, :width] for part in padded.split(self.batch_size)]
        found = torch.cat(parts).permute(1, 2, 3, 0)  # (C, h, w, Z)
        logits = found.new_zeros(1, len(found), *volume.shape[1:])
        logits[:, 0] = 1  # background
        box = logits[0, :, rows, columns]
        box[..., planes] = found
        return convert_to_dst_type(logits, inputs)[0]


def _on_grid(filled: torch.Tensor) -> slice:
    indices = filled.nonzero()[:, 0].tolist()
    first, stop = indices[0], indices[-1] + 1
    return slice(first - first % STRIDE, min(stop + -stop % STRIDE, len(filled)))


def _padding(size: int) -> int:
    return max(size + -size % STRIDE, SMALLEST) - size
