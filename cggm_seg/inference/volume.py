"""Labels and class probabilities of one volume in memory."""

from collections.abc import Collection, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cggm.errors import UserError
from cggm_seg.data import prepare_image
from cggm_seg.inference.slices import BatchSize, InferenceSettings, device_of, slice_logits

DEFAULT = InferenceSettings()


def predict_volume(
    network: nn.Module,
    images: Tensor | np.ndarray,
    settings: InferenceSettings = DEFAULT,
    *,
    absent: Collection[str] = (),
) -> np.ndarray:
    """Segments one volume. Prepares it as in training: z-scores over the brain of each modality.

    The background is the value that surrounds the brain, 0 or another one. Slices without brain are
    skipped; all voxels outside the box around the brain are background.
    The network is evaluated on its own device and left in the mode it had.

    Args:
        network: Maps ``(B, M, H, W)`` to logits and names its channels in ``modalities``.
        images: Intensities in the axes L, P, S, shape ``(M, H, W, Z)``; the background of each
            has a single value.
        settings: How the volume is cut, batched and computed.
        absent: Modalities to be replaced by zeros.

    Returns:
        Class indices, uint8, shape ``(H, W, Z)``.

    Raises:
        UserError: If all voxels are zero, ``absent`` names an unknown modality, memory is too
            short for a single slice, or the network predicts NaN or infinity.
        ValueError: If the number of modalities does not fit the network.
    """
    raw, size = _present(network, images, absent), settings.batches(device_of(network))
    return segment(network, raw, settings, size)[0]


def predict_probabilities(
    network: nn.Module,
    images: Tensor | np.ndarray,
    settings: InferenceSettings = DEFAULT,
    *,
    absent: Collection[str] = (),
) -> np.ndarray:
    """Class probabilities, float32, shape ``(C, H, W, Z)``; see :func:`predict_volume`.

    Takes 143 MB for four classes of a BraTS volume. Their largest gives the classes of
    :func:`predict_volume`.
    """
    raw, size = _present(network, images, absent), settings.batches(device_of(network))
    probabilities = segment(network, raw, settings, size, probabilities=True)[1]
    assert probabilities is not None
    return probabilities


def segment(
    network: nn.Module,
    raw: np.ndarray,
    settings: InferenceSettings,
    size: BatchSize,
    *,
    probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and, if asked for, probabilities of one volume, in one pass of the network.

    Args:
        network: See :func:`predict_volume`.
        raw: Intensities of all its modalities, shape ``(M, H, W, Z)``.
        settings: How the volume is cut and computed.
        size: Slices at once; it goes on with the next volume.
        probabilities: Whether they are asked for.

    Returns:
        Classes, uint8, ``(H, W, Z)``; probabilities, float32, ``(C, H, W, Z)``, or ``None``. Both
        are laid out slice by slice, as files are.
    """
    labels, shares = np.zeros(raw.shape[:0:-1], np.uint8).T, None
    for where, logits in slice_logits(network, raw, settings, size):
        labels[where] = logits.argmax(1).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        if probabilities:
            shares = _background(logits.shape[1], raw.shape[1:]) if shares is None else shares
            shares[:, *where] = logits.softmax(1).permute(1, 2, 3, 0).cpu().numpy()
    return labels, shares


def names_of(network: nn.Module) -> tuple[str, ...]:
    """The modalities of a network, in the order of its channels."""
    return tuple(cast(Sequence[str], network.modalities))


def check_absent(network: nn.Module, absent: Collection[str]) -> None:
    """Refuse absent modalities that the network does not know.

    Raises:
        UserError: Naming them.
    """
    names = names_of(network)
    unknown = sorted(set(absent) - set(names))
    if unknown:
        what = f"Expected `absent` to name modalities of the network, but got {', '.join(unknown)}."
        raise UserError(what, f"Choose among {', '.join(names)}.")


def _background(classes: int, shape: Sequence[int]) -> np.ndarray:
    """Probabilities of a volume of background, ``(C, H, W, Z)``."""
    probabilities = np.zeros((classes, *shape[::-1]), np.float32).transpose(0, 3, 2, 1)
    probabilities[0] = 1
    return probabilities


def _present(
    network: nn.Module, images: Tensor | np.ndarray, absent: Collection[str]
) -> np.ndarray:
    raw = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    names = names_of(network)
    if raw.ndim != 4 or len(raw) != len(names):
        raise ValueError(
            f"Expected images of shape ({len(names)}, H, W, Z), one per modality of the network "
            f"({', '.join(names)}), but got shape {raw.shape}."
        )
    check_absent(network, absent)
    given = list(raw)
    prepared = [prepare_image(image) for image in given]
    if any(image is not original for image, original in zip(prepared, given, strict=True)):
        raw = np.stack(prepared)
    if absent:
        raw = raw.copy(order="K")
        raw[[names.index(name) for name in absent]] = 0
    return raw
