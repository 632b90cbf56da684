"""Volumes of a case, read with every check that training and inference rely on; label maps."""

import gzip
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cggm.errors import DataError
from cggm.runs import write_atomically
from cggm_seg.data.cases import Case
from cggm_seg.data.checks import geometry_findings, intensity_findings
from cggm_seg.data.findings import Finding
from cggm_seg.data.labels import LabelScheme, to_classes
from cggm_seg.data.nifti import read_volume
from cggm_seg.data.orientation import Grid
from cggm_seg.data.preprocessing import prepare_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volumes:
    """One case in memory.

    Attributes:
        images: Intensities with a background of exactly 0, see
            :func:`cggm_seg.data.preprocessing.prepare_image`, in the project's frame, see
            :mod:`cggm_seg.data.orientation`, shape ``(M, H, W, Z)``, in the type of the files or,
            where a background was subtracted, one that holds it; laid out slice by slice.
        label: Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, shape ``(H, W, Z)``, or ``None``.
        grid: How the file of the first modality stores its voxels, for what is written of the case.
        modalities: Names of the images.
    """

    images: np.ndarray
    label: np.ndarray | None
    grid: Grid
    modalities: tuple[str, ...]

    def channels(self, names: Sequence[str]) -> np.ndarray:
        """Images of these modalities, zeros where the case lacks one, shape ``(M, H, W, Z)``.

        Args:
            names: The modalities of a network, in the order of its channels.
        """
        if tuple(names) == self.modalities:
            return self.images
        channels = _allocate(len(names), self.images[0])
        for channel, name in zip(channels, names, strict=True):
            present = name in self.modalities
            channel[...] = self.images[self.modalities.index(name)] if present else 0
        return channels


def read_case(case: Case) -> Volumes:
    """Reads the images of a case and its label map, if it has one.

    Raises:
        DataError: If a file is missing, damaged or not a 3-D NIfTI image, an image holds NaN,
            Inf or a single intensity or has no constant background, shapes or affines disagree,
            or a label is unknown.
    """
    if not case.images:
        what = "Expected at least one image, but the case has none."
        raise DataError(case.id, case.label, what, "Add the images, or leave the case out.")
    for k, file in enumerate(case.images.values()):
        volume = read_volume(file, case.id)
        _raise_first(intensity_findings(case.id, file, volume))
        image = prepare_image(volume.array)
        if k == 0:
            first = volume
            images = _allocate(len(case.images), image)
        _raise_first(geometry_findings(case.id, file, volume, first))
        images = images.astype(np.result_type(images, image), copy=False)
        images[k] = image
    label = None
    if case.label is not None:
        volume = read_volume(case.label, case.id)
        _raise_first(geometry_findings(case.id, case.label, volume, first))
        label = to_classes(case.id, case.label, volume, case.labels)
    return Volumes(images, label, first.grid, tuple(case.images))


def read_labels(file: Path, case_id: str, scheme: LabelScheme) -> tuple[np.ndarray, Grid]:
    """Reads a label map as classes 0 background, 1 NCR, 2 ED, 3 ET.

    Args:
        file: The label map.
        case_id: Named in errors.
        scheme: What the file's values mean.

    Returns:
        Classes in the project's frame, uint8, shape ``(H, W, Z)``, and the grid of the file.

    Raises:
        Finding: If the file is missing, damaged or not a 3-D NIfTI image, or a label is unknown.
    """
    volume = read_volume(file, case_id)
    return to_classes(case_id, file, volume, scheme), volume.grid


def write_labels(file: Path, classes: np.ndarray, grid: Grid, scheme: LabelScheme) -> None:
    """Writes classes as a uint8 label map; the file appears complete or not at all.

    Orientation, affine and sform and qform codes are those of the grid's file, byte for byte.

    Args:
        file: Where to, ``.nii`` or ``.nii.gz``; its folder must exist.
        classes: Classes 0 to 3 in the project's frame, shape ``(H, W, Z)``.
        grid: Of an image of the case.
        scheme: What the values are to mean, such as 4 (2021) or 3 (2023) for ET.

    Raises:
        ValueError: If the shape is not that of the grid.
        UserError: If the scheme has no value for a class.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    values = scheme.file_values()[grid.from_frame(classes)]
    header = grid.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    data = nib.Nifti1Image(values, None, header).to_bytes()
    if file.suffix == ".gz":
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_atomically(file, data)


def _allocate(count: int, array: np.ndarray) -> np.ndarray:
    height, width, depth = array.shape
    # Files run along H first: this layout copies them as they are, np.stack takes 15 times longer.
    images = np.empty((count, depth, width, height), array.dtype.newbyteorder("="))
    return images.transpose(0, 3, 2, 1)


def _raise_first(findings: Iterator[Finding]) -> None:
    """Raises the first error; warnings are told and go on."""
    for finding in findings:
        if finding.is_error:
            raise finding
        logger.warning("%s", finding)
