"""Segments whole volumes, slice by slice, and writes label maps for whole cohorts."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cggm.distributed import gather_shards, is_first_rank, shard
from cggm.errors import DataError, UserError
from cggm_seg.cases import Case
from cggm_seg.slicewise import InferenceSettings, slice_logits
from cggm_seg.volumes import read_case, write_labels

__all__ = ["InferenceSettings", "predict_cases", "predict_probabilities", "predict_volume"]

DEFAULT = InferenceSettings()

logger = logging.getLogger(__name__)


def predict_volume(
    network: nn.Module,
    images: Tensor | np.ndarray,
    settings: InferenceSettings = DEFAULT,
    *,
    absent: Collection[str] = (),
) -> np.ndarray:
    """Segments one volume. Prepares it as in training: z-scores over the non-zero voxels.

    Slices without brain are skipped; all voxels outside the box around the brain are background.
    The network is evaluated on its own device and left in the mode it had.

    Args:
        network: Maps ``(B, M, H, W)`` to logits and names its channels in ``modalities``.
        images: Raw intensities with background exactly 0, shape ``(M, H, W, Z)``.
        settings: How the volume is cut, batched and computed.
        absent: Modalities to be replaced by zeros.

    Returns:
        Class indices, uint8, shape ``(H, W, Z)``.

    Raises:
        UserError: If all voxels are zero or ``absent`` names an unknown modality.
        ValueError: If the number of modalities does not fit the network.
    """
    raw = _present(network, images, absent)
    labels = np.zeros(raw.shape[:0:-1], np.uint8).T  # laid out slice by slice, as files are
    for where, logits in slice_logits(network, raw, settings):
        labels[where] = logits.argmax(1).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return labels


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
    raw = _present(network, images, absent)
    probabilities = np.empty(0, np.float32)
    for where, logits in slice_logits(network, raw, settings):
        if not probabilities.size:
            probabilities = np.zeros((logits.shape[1], *raw.shape[1:]), np.float32)
            probabilities[0] = 1
        probabilities[:, *where] = logits.softmax(1).permute(1, 2, 3, 0).cpu().numpy()
    return probabilities


def predict_cases(
    network: nn.Module,
    cases: Sequence[Case],
    output: Path,
    settings: InferenceSettings = DEFAULT,
    *,
    absent: Collection[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    sharded: bool = False,
) -> tuple[list[Path], list[DataError]]:
    """Segments cases and writes ``<output>/<case id>.nii.gz``, with the labels of their naming.

    A modality that a case lacks is replaced by zeros, with a warning in the log.

    Args:
        network: See :func:`predict_volume`.
        cases: The cases; label maps are not read.
        output: Folder, made if there is none.
        settings: How volumes are cut, batched and computed.
        absent: Modalities to be replaced by zeros in every case.
        strict: Whether the first bad case ends the run.
        overwrite: Whether existing predictions are replaced; otherwise such a case is an error.
        progress: Whether to show a progress bar.
        sharded: Whether the ranks share the cases; every rank then calls this, writes the
            predictions of its share, and gets the outcome of all.

    Returns:
        The files written, and one error for each case without one.

    Raises:
        DataError: If a case cannot be predicted and ``strict`` is set.
        UserError: If the output cannot be written or ``absent`` names an unknown modality.
    """
    _absent_channels(network, absent)
    _make(output)
    mine = shard(cases) if sharded else cases
    shown = None if progress and is_first_rank() else True
    bar = tqdm(mine, "Predicting", unit="case", disable=shown)
    outcomes = [
        _attempt(network, case, output / f"{case.id}.nii.gz", settings, absent, strict, overwrite)
        for case in bar
    ]
    outcomes = gather_shards(outcomes) if sharded else outcomes
    written = [outcome for outcome in outcomes if isinstance(outcome, Path)]
    return written, [outcome for outcome in outcomes if isinstance(outcome, DataError)]


def _attempt(
    network: nn.Module,
    case: Case,
    file: Path,
    settings: InferenceSettings,
    absent: Collection[str],
    strict: bool,
    overwrite: bool,
) -> Path | DataError:
    try:
        if file.exists() and not overwrite:
            raise _exists(case, file)
        _predict_case(network, case, file, settings, absent)
    except DataError as error:
        if strict:
            raise
        return error
    return file


def _predict_case(
    network: nn.Module,
    case: Case,
    file: Path,
    settings: InferenceSettings,
    absent: Collection[str],
) -> None:
    names = _names(network)
    missing = [name for name in names if name not in case.images]
    if missing:
        logger.warning("%s: no %s, replaced by zeros.", case.id, ", ".join(missing))
    if not set(names) - set(missing) - set(absent):
        what = f"Expected at least one of {', '.join(names)}, but all are missing or absent."
        raise DataError(case.id, None, what, "Add an image, or leave the case out.")
    volumes = read_case(replace(case, label=None))
    images = _by_channel(names, case, volumes.images)
    classes = predict_volume(network, images, settings, absent=absent)
    try:
        write_labels(file, classes, volumes.header, case.naming)
    except OSError as error:
        raise _unwritable(file, error) from error


def _by_channel(names: Sequence[str], case: Case, images: np.ndarray) -> np.ndarray:
    if tuple(case.images) == tuple(names):
        return images
    rows = dict(zip(case.images, images, strict=True))
    blank = np.zeros_like(images[0])
    return np.stack([rows.get(name, blank).T for name in names]).transpose(0, 3, 2, 1)


def _names(network: nn.Module) -> tuple[str, ...]:
    return tuple(cast(Sequence[str], network.modalities))


def _absent_channels(network: nn.Module, absent: Collection[str]) -> list[int]:
    names = _names(network)
    unknown = sorted(set(absent) - set(names))
    if unknown:
        what = f"Expected `absent` to name modalities of the network, but got {', '.join(unknown)}."
        raise UserError(what, f"Choose among {', '.join(names)}.")
    return [names.index(name) for name in absent]


def _present(
    network: nn.Module, images: Tensor | np.ndarray, absent: Collection[str]
) -> np.ndarray:
    raw = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    names = _names(network)
    if raw.ndim != 4 or len(raw) != len(names):
        raise ValueError(
            f"Expected images of shape ({len(names)}, H, W, Z), one per modality of the network "
            f"({', '.join(names)}), but got shape {raw.shape}."
        )
    channels = _absent_channels(network, absent)
    if channels:
        raw = raw.copy(order="K")
        raw[channels] = 0
    return raw


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _exists(case: Case, file: Path) -> DataError:
    what = "Expected no prediction yet, but the file exists."
    return DataError(case.id, file, what, "Remove it, allow overwriting or choose another folder.")


def _unwritable(path: Path, error: OSError) -> UserError:
    what = f"Expected to write {path}, but got: {error.strerror or error}."
    return UserError(what, "Free space, or choose a folder that you may write to.")
