"""Reads whole cases with every check that training and inference rely on; writes label maps."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cggm.errors import DataError
from cggm.runs.folder import write_atomically
from cggm_seg.cases import Case, Naming
from cggm_seg.nifti import Volume, read_volume

# What the files hold for background, NCR, ED and ET, our classes 0 to 3.
FILE_LABELS: dict[Naming, tuple[int, int, int, int]] = {
    "2021": (0, 1, 2, 4),
    "2023": (0, 1, 2, 3),
}

_AFFINE_TOLERANCE = 1e-3  # mm
_ROUNDING = 1e-5  # of label values in files of scaled or floating-point voxels


@dataclass(frozen=True)
class Volumes:
    """One case in memory.

    Attributes:
        images: Raw intensities, shape ``(M, H, W, Z)``, in the type of the files; the memory
            is laid out slice by slice.
        label: Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, shape ``(H, W, Z)``, or ``None``.
        header: Header of the first modality.
        affine: Voxel indices to millimeters, shape ``(4, 4)``.
    """

    images: np.ndarray
    label: np.ndarray | None
    header: nib.Nifti1Header
    affine: np.ndarray


def read_case(case: Case) -> Volumes:
    """Reads the images of a case and its label map, if it has one.

    Raises:
        DataError: If a file is missing, damaged or not a 3-D NIfTI image, an image holds NaN,
            Inf or nothing but zeros, shapes or affines disagree, or a label is unknown.
    """
    if not case.images:
        what = "Expected at least one image, but the case has none."
        raise DataError(case.id, case.label, what, "Add the images, or leave the case out.")
    for k, file in enumerate(case.images.values()):
        volume = read_volume(file, case.id)
        _check_intensities(case.id, file, volume.array)
        if k == 0:
            header, affine = volume.header, volume.affine
            images = _allocate(len(case.images), volume.array)
        _check_geometry(case.id, file, volume, images.shape[1:], affine)
        images = images.astype(np.result_type(images, volume.array), copy=False)
        images[k] = volume.array
    label = None
    if case.label is not None:
        volume = read_volume(case.label, case.id)
        _check_geometry(case.id, case.label, volume, images.shape[1:], affine)
        label = _classes(case.id, case.label, volume.array, case.naming)
    return Volumes(images, label, header, affine)


def read_labels(file: Path, case_id: str, naming: Naming) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Reads a label map as classes 0 background, 1 NCR, 2 ED, 3 ET.

    Args:
        file: The label map.
        case_id: Named in errors.
        naming: Scheme of the file, which decides whether ET is 4 (2021) or 3 (2023).

    Returns:
        Classes, uint8, shape ``(H, W, Z)``, and the header.

    Raises:
        DataError: If the file is missing, damaged or not a 3-D NIfTI image, or a label is unknown.
    """
    volume = read_volume(file, case_id)
    return _classes(case_id, file, volume.array, naming), volume.header


def write_labels(file: Path, classes: np.ndarray, like: nib.Nifti1Header, naming: Naming) -> None:
    """Writes classes as a uint8 label map; the file appears complete or not at all.

    Affine and sform and qform codes are those of ``like``, byte for byte.

    Args:
        file: Where to, ``.nii`` or ``.nii.gz``; its folder must exist.
        classes: Classes 0 to 3, shape ``(H, W, Z)``.
        like: Header of an image of the case.
        naming: Scheme of the case: ET becomes 4 (2021) or 3 (2023).

    Raises:
        ValueError: If the shape is not that of ``like``.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    if classes.shape != like.get_data_shape():
        raise ValueError(f"Expected shape {like.get_data_shape()}, but got {classes.shape}.")
    header = like.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    values = classes.astype(np.uint8)
    values[values == 3] = FILE_LABELS[naming][3]
    data = nib.Nifti1Image(values, None, header).to_bytes()
    if file.suffix == ".gz":
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_atomically(file, data)


def _allocate(count: int, array: np.ndarray) -> np.ndarray:
    height, width, depth = array.shape
    # Files run along H first: this layout copies them as they are, np.stack takes 15 times longer.
    images = np.empty((count, depth, width, height), array.dtype.newbyteorder("="))
    return images.transpose(0, 3, 2, 1)


def _check_intensities(case_id: str, file: Path, array: np.ndarray) -> None:
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(array))
        what = f"Expected finite intensities, but found NaN or Inf in {count} of them."
        raise DataError(case_id, file, what, "Export the image again, or leave the case out.")
    if low == 0 == high:
        what = "Expected an image, but all voxels are zero."
        raise DataError(case_id, file, what, "Export the image again, or leave the case out.")


def _check_geometry(
    case_id: str, file: Path, volume: Volume, shape: tuple[int, ...], affine: np.ndarray
) -> None:
    if volume.array.shape != shape:
        what = f"Expected shape {shape} as of the first image, but found {volume.array.shape}."
        raise DataError(case_id, file, what, "Resample all images of a case to one grid.")
    if not np.allclose(volume.affine, affine, rtol=0, atol=_AFFINE_TOLERANCE):
        what = (
            f"Expected the affine of the first image, {affine.tolist()}, "
            f"but found {volume.affine.tolist()}."
        )
        raise DataError(case_id, file, what, "Register all images of a case to one grid.")


def _classes(case_id: str, file: Path, values: np.ndarray, naming: Naming) -> np.ndarray:
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        values = np.where(np.abs(values - rounded) < _ROUNDING, rounded, values)
    allowed = FILE_LABELS[naming]
    flat = values.ravel(order="K")  # selects 9 times faster than a 3-D array
    unknown = np.setdiff1d(flat[flat != 0], allowed)
    if unknown.size:
        found = ", ".join(f"{value:g}" for value in unknown[:5])
        what = f"Expected labels {allowed} of a {naming} case, but found {found}."
        raise DataError(case_id, file, what, _label_fix(set(unknown.tolist()), naming))
    classes = values.astype(np.uint8)
    classes[classes == allowed[3]] = 3
    return classes


def _label_fix(unknown: set[float], naming: Naming) -> str:
    if naming == "2021" and unknown == {3}:
        return (
            "Label 3 is the enhancing tumor of the 2023 scheme: "
            "change it to 4, or rename the files as in 2023 (-t2f, -t1c, -t1n, -t2w, -seg)."
        )
    if naming == "2023" and unknown == {4}:
        return (
            "Label 4 is the enhancing tumor of the 2021 scheme: change it to 3, or rename the "
            "files as in 2021. In the 2024 data it is the resection cavity: change it to 0."
        )
    return "Map the labels to background, NCR, ED and ET, or leave the case out."
