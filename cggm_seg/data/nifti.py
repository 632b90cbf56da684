"""NIfTI files, each read so that no damage passes unnoticed.

nibabel stops reading a gzip stream before its checksum and accepts most bit flips; here every
stream is read to its end, once, and no header is believed before the size of the file allows it.
"""

import gzip
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from zlib_ng import zlib_ng

from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.orientation import Grid, is_invertible

_SMALLEST_VOXEL, _LARGEST_VOXEL = 0.05, 50.0  # mm, of any clinical image
_PARALLEL = 0.5  # cosine of axes that are taken for the same
_CHUNK = 1 << 16
_MOST = 1 << 20  # inflated at once: a chunk of zeros would become 66 MB
_GZIP = 31  # window bits that make zlib expect a gzip stream and compare its checksum and length
_MAGIC = b"\x1f\x8b"
_DESCRIPTION = slice(148, 228)  # of a NIfTI-1 header, free text
SIMULATED_IMAGE = b"SIMULATED"
"""What the description of a simulated image begins with."""


class HashedStream:
    """The content of a file, plain or gzip, with little memory and at the speed of zlib-ng.

    ``gzip.GzipFile`` would do, but takes twice the time to inflate, copies everything twice and
    computes a checksum of its own.

    Args:
        file: Opened for reading bytes.
        zipped: Whether to inflate it.
    """

    def __init__(self, file: BinaryIO, *, zipped: bool) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._inflater = zlib_ng.decompressobj(_GZIP) if zipped else None
        self._rest = b""
        if zipped:
            self._start_member()

    def fill(self, buffer: bytearray | memoryview) -> int:
        """Reads into a buffer of bytes; returns how many bytes there were, fewer only at the end.

        Raises:
            EOFError: If a gzip stream is cut short.
            gzip.BadGzipFile: If the file, or what follows a gzip stream in it, is none.
            zlib_ng.error: If a gzip stream is damaged.
        """
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            part = self._part(len(buffer) - filled)
            if not part:
                break
            view[filled : filled + len(part)] = part
            filled += len(part)
        return filled

    def _part(self, most: int) -> bytes:
        if self._inflater is None:
            return self._read(min(most, _CHUNK))
        part = b""
        while not part:
            if self._inflater.eof and not self._start_member():
                return b""
            compressed = self._rest or self._read(_CHUNK)
            part = self._inflater.decompress(compressed, min(most, _MOST))
            ended = self._inflater.eof
            self._rest = self._inflater.unused_data if ended else self._inflater.unconsumed_tail
            if not part and not compressed and not ended:
                raise EOFError("the gzip stream is cut short")
        return part

    def _start_member(self) -> bool:
        """Goes to the next gzip stream of the file, past zeros; tells whether there is one."""
        while not self._rest.lstrip(b"\0"):
            self._rest = self._read(_CHUNK)
            if not self._rest:
                return False
        self._rest = self._rest.lstrip(b"\0")
        if len(self._rest) == 1:
            self._rest += self._read(_CHUNK)
        if not self._rest.startswith(_MAGIC):
            raise gzip.BadGzipFile(f"Not a gzipped file ({self._rest[:2]!r})")
        self._inflater = zlib_ng.decompressobj(_GZIP)
        return True

    def _read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self.sha256.update(chunk)
        return chunk


_HEADER_SIZE = 348
_LARGEST = 80 << 20  # bytes of voxels; a BraTS volume has 18 MB, in float64 71 MB
_DEFLATE_RATIO = 1032  # no deflate stream expands by more
_AGAIN = "Download or copy the file again, or take the case out of the folder."


@dataclass(frozen=True)
class Volume:
    """One three-dimensional image.

    Attributes:
        array: Voxels in the project's frame, see :mod:`cggm_seg.data.orientation`, shape
            ``(H, W, Z)``, read-only; float32 if the file asks for scaling.
        grid: How the file stores them.
        digest: SHA-256 of the file.
        rounding: By how much scaled storage may have changed a voxel; 0 for one that is not scaled.
    """

    array: np.ndarray
    grid: Grid
    digest: str
    rounding: float = 0.0


def read_volume(file: Path, case_id: str) -> Volume:
    """Reads a NIfTI file, compressed or not, to its end, checksum and length included.

    Args:
        file: A single-file NIfTI-1 image of at most 80 MiB of voxels.
        case_id: Named in errors.

    Raises:
        Finding: If the file is missing, unreadable, damaged, too large, not NIfTI-1 or not 3-D.
    """
    try:
        header, data, digest = _read(file)
        return _volume(header, data, digest)
    except _Fault as fault:
        raise Finding(fault.code, case_id, file, str(fault), fault.fix) from fault
    except FileNotFoundError as error:
        what = "Expected this file, but it does not exist."
        fix = "Restore it, or take the case out of the folder."
        raise Finding(Code.MISSING, case_id, file, what, fix) from error
    except (EOFError, gzip.BadGzipFile, zlib_ng.error) as error:  # type: ignore[misc]  # stub
        what = f"Expected an intact gzip file, but it is truncated or damaged ({error})."
        raise Finding(Code.DAMAGED, case_id, file, what, _AGAIN) from error
    except OSError as error:
        what = f"Expected a readable file, but got: {error.strerror or error}."
        fix = "Check the file and its permissions."
        raise Finding(Code.UNREADABLE, case_id, file, what, fix) from error


def says_simulated(file: Path) -> bool:
    """Whether the header of a file says that its image was simulated, as ours do.

    Args:
        file: Of any kind; one that cannot be read says nothing.
    """
    try:
        with file.open("rb") as opened:
            zipped = opened.read(2) == _MAGIC
            opened.seek(0)
            stream, head = HashedStream(opened, zipped=zipped), bytearray(_DESCRIPTION.stop)
            return stream.fill(head) == len(head) and head[_DESCRIPTION].startswith(SIMULATED_IMAGE)
    except (OSError, EOFError, zlib_ng.error):  # type: ignore[misc]  # stub
        return False


class _Fault(Exception):
    def __init__(self, code: Code, what: str, fix: str = _AGAIN) -> None:
        super().__init__(what)
        self.code = code
        self.fix = fix


def _read(file: Path) -> tuple[nib.Nifti1Header, np.ndarray, str]:
    with open(file, "rb") as opened:
        file_size = os.fstat(opened.fileno()).st_size
        if file_size == 0:
            raise _Fault(Code.DAMAGED, "Expected a NIfTI image, but the file is empty.")
        # By content, not by ending: both .nii.gz without compression and .nii with it are about.
        zipped = opened.read(len(_MAGIC)) == _MAGIC
        opened.seek(0)
        stream = HashedStream(opened, zipped=zipped)
        head = bytearray(_HEADER_SIZE)
        stream.fill(head)
        header = _header(bytes(head))
        _check_size(header, file_size, zipped)
        stream.fill(bytearray(int(header["vox_offset"]) - _HEADER_SIZE))
        size = prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        data = np.empty(size, np.uint8)  # a bytearray would be zeroed first
        found = stream.fill(data.data)
        surplus = stream.fill(bytearray(1))  # also makes zlib compare checksum and length
    if found < len(data) or surplus:
        count = "more" if surplus else f"{found}, the file is truncated"
        what = f"Expected {len(data)} bytes of voxels as the header declares, but found {count}."
        raise _Fault(Code.DAMAGED, what)
    return header, data, stream.sha256.hexdigest()


def _check_size(header: nib.Nifti1Header, file_size: int, zipped: bool) -> None:
    shape, itemsize = header.get_data_shape(), header.get_data_dtype().itemsize
    offset, voxels = int(header["vox_offset"]), prod(shape)
    capacity = file_size * (_DEFLATE_RATIO if zipped else 1)
    # Scaling makes four bytes of every voxel.
    if offset + voxels * itemsize > capacity:
        raise _Fault(
            Code.TOO_LARGE,
            f"Expected a file that can hold its voxels, but the header declares {shape} voxels "
            f"from byte {offset} on in a file of {file_size} bytes.",
        )
    if offset + voxels * max(itemsize, 4) > _LARGEST:
        size = f"{shape} voxels of {itemsize} bytes"
        what = f"Expected at most 80 MiB of voxels, but the header declares {size}."
        fix = "Resample or crop the image, and the others of the case with it."
        if voxels * 4 < _LARGEST:
            fix = "Store it in a smaller type, float32 or int16."
        raise _Fault(Code.TOO_LARGE, what, fix)


def _header(head: bytes) -> nib.Nifti1Header:
    if b"\x5c\x01\x00\x00" not in (head[:4], head[3::-1]) or head[344:348] != b"n+1\0":
        raise _Fault(
            Code.NOT_NIFTI,
            "Expected a single-file NIfTI-1 image, but the header is of another kind.",
            "Convert the image to NIfTI-1, or download it again.",
        )
    try:
        header: nib.Nifti1Header = nib.Nifti1Header.from_fileobj(BytesIO(head))
        header.get_slope_inter()
        shape, offset = header.get_data_shape(), int(header["vox_offset"])
        affine, dtype = header.get_best_affine(), header.get_data_dtype()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        what = f"Expected a valid NIfTI header, but got: {error}."
        raise _Fault(Code.BAD_HEADER, what) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        fix = (
            "Split an image into one file per modality; put the channels of a label map, one for "
            "each class or region, into one map of values."
        )
        if len(shape) < 3:
            fix = "Give the whole volume, all slices in one file."
        raise _Fault(Code.NOT_3D, f"Expected a 3-D image, but its shape is {shape}.", fix)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = f"Expected real numbers of at most 64 bits, but the voxels are {dtype}."
        raise _Fault(Code.BAD_TYPE, what, "Convert the image to int16 or float32.")
    if offset < _HEADER_SIZE or not is_invertible(affine):
        what = f"Expected a valid NIfTI header, but got offset {offset}, affine {affine.tolist()}."
        raise _Fault(Code.BAD_HEADER, what)
    _check_grid(header, affine)
    header.set_data_shape(shape)
    return header


def _check_grid(header: nib.Nifti1Header, affine: np.ndarray) -> None:
    """Refuse a grid whose orientation or size cannot be known."""
    coded = int(header["sform_code"]), int(header["qform_code"])
    if coded == (0, 0):
        what = "Expected an orientation, but neither sform nor qform is set (both codes are 0)."
        fix = "Which side is left cannot be known: set the affine of the image, or convert it anew."
        raise _Fault(Code.BAD_HEADER, what, fix)
    if min(coded) > 0:
        # Readers differ in which of the two they take.
        with suppress(HeaderDataError):
            forms = header.get_sform(), header.get_qform()
            axes_of = [form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in forms]
            if (axes_of[0] * axes_of[1]).sum(0).min() < _PARALLEL:
                axes = " and ".join("".join(map(str, nib.aff2axcodes(form))) for form in forms)
                what = f"Expected one orientation, but sform and qform say {axes}."
                raise _Fault(Code.BAD_HEADER, what, "Set both to the right one, or one code to 0.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (spacing.min() >= _SMALLEST_VOXEL and spacing.max() <= _LARGEST_VOXEL):
        sizes = " x ".join(f"{size:g}" for size in spacing)
        what = (
            f"Expected voxels of {_SMALLEST_VOXEL:g} to {_LARGEST_VOXEL:g} mm, but the header "
            f"says {sizes}."
        )
        fix = "Correct the voxel sizes; those in meters or micrometers are not converted."
        raise _Fault(Code.BAD_HEADER, what, fix)


def _volume(header: nib.Nifti1Header, data: np.ndarray, digest: str) -> Volume:
    voxels = data.view(header.get_data_dtype())
    voxels.flags.writeable = False
    array = voxels.reshape(tuple(header.get_data_shape()), order="F")
    slope, intercept = header.get_slope_inter()
    rounding = 0.0
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as that
            array = np.multiply(array, slope, dtype=np.float32, casting="same_kind")
            array += np.float32(intercept)
        rounding = abs(slope) / 2 if voxels.dtype.kind in "iu" else 0.0
    grid = Grid(header)
    return Volume(grid.to_frame(array), grid, digest, rounding)
