"""Reads single NIfTI files so that no damage passes unnoticed.

nibabel stops reading a gzip stream before its checksum and accepts most bit flips; here every
stream is read to its end, once, and no header is believed before the size of the file allows it.
"""

import gzip
import zlib
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from cggm.errors import DataError

_HEADER_SIZE = 348
_LARGEST = 1 << 30  # bytes of voxels; a BraTS volume has 18 MB
_DEFLATE_RATIO = 1032  # no deflate stream expands by more
_AGAIN = "Download or copy the file again, or take the case out of the folder."


@dataclass(frozen=True)
class Volume:
    """One three-dimensional image.

    Attributes:
        array: Voxels, shape ``(H, W, Z)``, read-only; float32 if the file asks for scaling.
        header: The header, three-dimensional.
        affine: Voxel indices to millimeters, shape ``(4, 4)``.
    """

    array: np.ndarray
    header: nib.Nifti1Header
    affine: np.ndarray


def read_volume(file: Path, case_id: str) -> Volume:
    """Reads a ``.nii`` or ``.nii.gz`` file to its end, checksum and length included.

    Args:
        file: A single-file NIfTI-1 image of at most 1 GiB of voxels.
        case_id: Named in errors.

    Raises:
        DataError: If the file is missing, unreadable, damaged, not NIfTI-1 or not 3-D.
    """
    try:
        header, data = _read(file)
        volume = _volume(header, data)
    except _Fault as fault:
        raise DataError(case_id, file, str(fault), fault.fix) from fault
    except FileNotFoundError as error:
        what = "Expected this file, but it does not exist."
        fix = "Restore it, or take the case out of the folder."
        raise DataError(case_id, file, what, fix) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        what = f"Expected an intact gzip file, but it is truncated or damaged ({error})."
        raise DataError(case_id, file, what, _AGAIN) from error
    except OSError as error:
        what = f"Expected a readable file, but got: {error.strerror or error}."
        raise DataError(case_id, file, what, "Check the file and its permissions.") from error
    return volume


class _Fault(Exception):
    def __init__(self, what: str, fix: str = _AGAIN) -> None:
        super().__init__(what)
        self.fix = fix


def _read(file: Path) -> tuple[nib.Nifti1Header, bytes]:
    file_size = file.stat().st_size
    if file_size == 0:
        raise _Fault("Expected a NIfTI image, but the file is empty.")
    zipped = file.suffix == ".gz"
    with gzip.open(file) if zipped else open(file, "rb") as opened:
        stream = cast(BinaryIO, opened)
        header = _header(stream.read(_HEADER_SIZE))
        offset = int(header["vox_offset"])
        size = prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        if offset + size > min(file_size * (_DEFLATE_RATIO if zipped else 1), _LARGEST):
            raise _Fault(
                f"Expected at most 1 GiB of voxels and a file that can hold them, but the header "
                f"declares {header.get_data_shape()} voxels in a file of {file_size} bytes."
            )
        stream.read(offset - _HEADER_SIZE)
        data = stream.read(size)
        surplus = stream.read(1)  # also makes gzip compare checksum and length
    if len(data) < size or surplus:
        found = "more" if surplus else f"{len(data)}, the file is truncated"
        raise _Fault(f"Expected {size} bytes of voxels as the header declares, but found {found}.")
    return header, data


def _header(head: bytes) -> nib.Nifti1Header:
    if b"\x5c\x01\x00\x00" not in (head[:4], head[3::-1]) or head[344:348] != b"n+1\0":
        raise _Fault(
            "Expected a single-file NIfTI-1 image, but the header is of another kind.",
            "Convert the image to NIfTI-1, or download it again.",
        )
    try:
        header: nib.Nifti1Header = nib.Nifti1Header.from_fileobj(BytesIO(head))
        header.get_slope_inter()
        shape, offset = header.get_data_shape(), int(header["vox_offset"])
        affine = header.get_best_affine()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise _Fault(f"Expected a valid NIfTI header, but got: {error}.") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        fix = "Split the image into one file per modality."
        raise _Fault(f"Expected a 3-D image, but its shape is {shape}.", fix)
    if header.get_data_dtype().kind not in "iuf":
        raise _Fault(f"Expected real numbers, but the voxels are {header.get_data_dtype()}.")
    if offset < _HEADER_SIZE or not np.isfinite(affine).all():
        raise _Fault(f"Expected a valid NIfTI header, but got offset {offset}, affine {affine}.")
    header.set_data_shape(shape)
    return header


def _volume(header: nib.Nifti1Header, data: bytes) -> Volume:
    voxels = np.frombuffer(data, header.get_data_dtype())
    array = voxels.reshape(tuple(header.get_data_shape()), order="F")
    slope, intercept = header.get_slope_inter()
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        array = array * np.float32(slope) + np.float32(intercept)
    return Volume(array, header, header.get_best_affine())
