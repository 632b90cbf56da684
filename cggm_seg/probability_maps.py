"""Class probabilities as a four-dimensional NIfTI file."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from cggm.runs.folder import replacing

_HEADER_END = 352  # bytes, with the four that say that no extension follows
_STEPS = 2**16


def write_probabilities(file: Path, probabilities: np.ndarray, like: nib.Nifti1Header) -> None:
    """Writes probabilities of background, NCR, ED and ET; the file appears complete or not at all.

    They are float32, which every reader knows, rounded to multiples of 2^-16: 2 MB for a BraTS case
    that takes 47 MB unrounded. Their largest gives the label map, unless the two largest are equal
    when rounded; sums of classes are probabilities of regions. Affine and sform and qform codes are
    those of ``like``, byte for byte.

    Args:
        file: Where to, ``.nii.gz``; its folder must exist.
        probabilities: Float32, shape ``(C, H, W, Z)``; the file has the classes last.
        like: Header of an image of the case.

    Raises:
        ValueError: If the shape is not that of ``like``.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    if probabilities.shape[1:] != like.get_data_shape():
        shape = ("C", *like.get_data_shape())
        raise ValueError(f"Expected shape {shape}, but got {probabilities.shape}.")
    header = like.copy()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*probabilities.shape[1:], len(probabilities)))
    header.set_slope_inter(1, 0)
    header["pixdim"][4] = 1
    header["cal_min"], header["cal_max"], header["vox_offset"] = 0, 1, _HEADER_END
    header["descrip"] = b"probabilities of background, NCR, ED, ET"
    with (
        replacing(file) as temporary,
        temporary.open("wb") as opened,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=opened, mtime=0) as stream,
    ):
        stream.write(header.binaryblock.ljust(_HEADER_END, b"\0"))
        for volume in probabilities:
            rounded = np.rint(volume * _STEPS) / _STEPS
            stream.write(rounded.astype(header.get_data_dtype()).tobytes(order="F"))
