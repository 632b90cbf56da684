"""Slices of a volume: how it is cut, batched and computed."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from cggm.errors import UserError, is_out_of_memory
from cggm.tensors import evaluating
from cggm_seg.data import brain_box, intensity_statistics, zscore
from cggm_seg.networks import OUTPUT_STRIDE

logger = logging.getLogger(__name__)


class BatchSize:
    """Slices that are computed at once; a size that was too large is not tried again.

    Args:
        slices: Slices at once to begin with, at least 1.
    """

    def __init__(self, slices: int) -> None:
        self.slices = slices

    def attempt(self, compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor | None:
        """Compute a batch, or halve the size where memory is too short for it.

        Args:
            compute: What to do with the batch.
            batch: At most ``slices`` slices, along the first axis.

        Returns:
            What was computed, or ``None`` where memory was short: come again with fewer slices.

        Raises:
            UserError: If memory is too short for a single slice.
        """
        try:
            return compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise _too_little(error) from None
        # Out here the error is gone, and with it the tensors that its traceback kept.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.slices = len(batch) // 2
        logger.warning("Memory is short: %d slices at once from here on.", self.slices)
        return None


def _too_little(error: Exception) -> UserError:
    said = str(error).strip().partition("\n")[0]
    what = f"Expected memory for one slice at a time, but got: {said}."
    return UserError(what, "Free memory, or compute on another device.")


class NotFinitePrediction(UserError):
    """Predictions that are no numbers, of which nothing but background would be left."""


Where = tuple[slice, slice, np.ndarray]  # rows, columns, slice numbers

_FLIPS = ((), (2,), (3,), (2, 3))  # axes of a batch of slices, (B, M, H, W)


@dataclass(frozen=True)
class InferenceSettings:
    """How a volume is cut, batched and computed.

    Attributes:
        mode: ``whole`` slices, or ``window``: overlapping windows, averaged with Gaussian weights.
            Windows cost several times as much; they are for networks that must see the size they
            were trained on.
        window: Height and width of a window, a multiple of 16.
        overlap: Overlap of windows as a share of their size, in [0, 1).
        flips: Whether the class probabilities of a slice and of its three mirror images (left and
            right, front and back, both) are averaged. Four times the work; for networks that were
            trained on flipped slices, as ours are.
        batch_size: Slices or windows at once, halved where memory is short; ``None`` stands for 16
            on a CPU, 64 on a GPU.
        precision: ``bf16`` runs under autocast; ``auto`` does so where the hardware computes it.
        crop_to_brain: Whether slices are cut to the box around the brain, on the 16-voxel grid of
            the whole slice. Differs from whole slices only by what global pooling and the border
            see.
    """

    mode: Literal["whole", "window"] = "whole"
    window: int = 160
    overlap: float = 0.25
    flips: bool = False
    batch_size: int | None = None
    precision: Literal["float32", "bf16", "auto"] = "auto"
    crop_to_brain: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "window") or self.window % OUTPUT_STRIDE:
            raise UserError(
                f"Expected mode `whole` or `window` and a window that is a multiple of "
                f"{OUTPUT_STRIDE}, but got {self.mode!r} and {self.window}.",
                "Correct the settings of the inference.",
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                f"Expected a batch size of at least 1, but got {self.batch_size}.",
                "Raise it, or leave it out to have one chosen.",
            )

    def in_bf16(self, device: torch.device) -> bool:
        """Whether a device computes in bfloat16 under these settings."""
        return self.precision == "bf16" or (self.precision == "auto" and computes_bf16(device))

    def autocast(self, device: torch.device) -> torch.autocast:
        """Autocast context of the precision on a device."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.in_bf16(device))

    def batches(self, device: torch.device) -> BatchSize:
        """How many slices a device takes at once, to begin with."""
        return BatchSize(self.batch_size or (64 if device.type == "cuda" else 16))

    def logits(self, network: nn.Module, slices: Tensor) -> Tensor:
        """Logits of slices, shape ``(B, M, H, W)`` -> ``(B, C, H, W)``, float32.

        With flips they are the logarithms of averaged probabilities, which are logits as well.
        """
        if not self.flips:
            return self._plain_logits(network, slices).float()
        probabilities = torch.zeros(())
        for axes in _FLIPS:  # one after another: only one needs memory
            logits = self._plain_logits(network, slices.flip(axes)).flip(axes)
            probabilities = logits.float().softmax(1) / len(_FLIPS) + probabilities
        return probabilities.log()

    def _plain_logits(self, network: nn.Module, slices: Tensor) -> Tensor:
        if self.mode == "whole":
            return cast(Tensor, network(slices))
        logits = sliding_window_inference(
            slices, self.window, len(slices), network, self.overlap, mode="gaussian"
        )
        return cast(Tensor, logits)


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 arithmetic; elsewhere it is emulated and slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older releases of torch
    flags: Mapping[str, object] = capabilities()
    return device.type == "cpu" and any(flags.get(f) for f in ("avx512_bf16", "amx_bf16", "bf16"))


def device_of(network: nn.Module) -> torch.device:
    """Where the weights of a network lie."""
    return next(network.parameters()).device


def slice_logits(
    network: nn.Module, raw: np.ndarray, settings: InferenceSettings, size: BatchSize
) -> Iterator[tuple[Where, Tensor]]:
    """Logits ``(B, C, h, w)`` of batches of slices, and their place in the volume.

    Raises:
        NotFinitePrediction: If the network gives NaN or infinity.
        UserError: If there is no brain, or memory is too short.
    """
    device = device_of(network)
    scores, (rows, columns, planes) = _brain_slices(raw, settings)
    height, width = (span.stop - span.start for span in (rows, columns))

    def compute(batch: Tensor) -> Tensor:
        batch = batch.to(device, memory_format=torch.channels_last)
        with evaluating(network), settings.autocast(device):
            return settings.logits(network, batch)[..., :height, :width]

    done = 0
    while done < len(planes):
        batch = torch.from_numpy(scores[done : done + size.slices])
        logits = size.attempt(compute, batch)
        if logits is not None:
            if not logits.isfinite().all():
                what = "Expected finite predictions of the network, but some are NaN or infinite."
                fix = "Check the weights of the model, and the intensities of the images."
                raise NotFinitePrediction(what, fix)
            yield (rows, columns, planes[done : done + len(batch)]), logits
            done += len(batch)


def _brain_slices(raw: np.ndarray, settings: InferenceSettings) -> tuple[np.ndarray, Where]:
    try:
        box = brain_box(raw)
    except ValueError as error:
        fix = "Check the images, and that `absent` does not name all of them."
        raise UserError(str(error), fix) from error
    statistics = intensity_statistics(raw[:, *box])
    rows, columns = (
        _on_grid(span, size) if settings.crop_to_brain else slice(0, size)
        for span, size in zip(box[:2], raw.shape[1:3], strict=True)
    )
    crop = raw[:, rows, columns, box[2]]
    filled = np.flatnonzero(crop.any(axis=(0, 1, 2)))
    scores = zscore(crop[..., filled], statistics).transpose(3, 0, 1, 2)  # (Z, M, h, w)
    padding = [(0, -size % OUTPUT_STRIDE) for size in scores.shape[2:]]
    return np.pad(scores, [(0, 0), (0, 0), *padding]), (rows, columns, filled + box[2].start)


def _on_grid(span: slice, size: int) -> slice:
    # On the grid of the whole slice strided convolutions see the same pixels as without a crop.
    start = span.start - span.start % OUTPUT_STRIDE
    return slice(start, min(span.stop + -span.stop % OUTPUT_STRIDE, size))
