"""Class probabilities of a case, and the table of all cases: what was found, in milliliters."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cggm.display import csv_text
from cggm.runs import replacing
from cggm_seg.data import Grid
from cggm_seg.evaluation import CLASSES, REGION_NAMES, REGIONS
from cggm_seg.inference.folder import PredictionFolder

_HEADER_END = 352  # bytes, with the four that say that no extension follows
_STEPS = 2**16


def write_probabilities(file: Path, probabilities: np.ndarray, grid: Grid) -> None:
    """Writes probabilities of background, NCR, ED and ET; the file appears complete or not at all.

    They are float32, which every reader knows, rounded to multiples of 2^-16: 2 MB for a BraTS case
    that takes 47 MB unrounded. Their largest gives the label map, unless the two largest are equal
    when rounded; sums of classes are probabilities of regions. Orientation, affine
    and sform and qform codes are those of the grid's file, byte for byte.

    Args:
        file: Where to, ``.nii.gz``; its folder must exist.
        probabilities: In the project's frame, float32, shape ``(C, H, W, Z)``; the file has the
            classes last.
        grid: Of an image of the case.

    Raises:
        ValueError: If the shape is not that of the grid.
        OSError: If the file cannot be written; nothing is left of it then.
    """
    volumes = [grid.from_frame(volume) for volume in probabilities]
    header = grid.header.copy()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*header.get_data_shape(), len(volumes)))
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
        for volume in volumes:
            rounded = np.rint(volume * _STEPS) / _STEPS
            stream.write(rounded.astype(header.get_data_dtype()).tobytes(order="F"))


_VOLUMES = tuple(f"{name}_ml" for name in REGION_NAMES)
_COLUMNS = ("case", "absent", *_VOLUMES, "seconds", "model", "file", "learned_from")


def region_volumes(labels: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Milliliters of whole tumor, tumor core and enhancing tumor.

    Args:
        labels: Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, shape ``(H, W, Z)``.
        affine: Voxel indices to millimeters, shape ``(4, 4)``.
    """
    voxels = np.bincount(labels.ravel(order="K"), minlength=CLASSES)
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {region: float(voxels[[*REGIONS[region]]].sum() * voxel) for region in REGION_NAMES}


def write_summary(folder: PredictionFolder) -> None:
    """Writes ``summary.csv``, a line for every label map that is there as it was made.

    Without any there is no table. Columns: case; absent modalities, separated by spaces; volumes of
    WT, TC and ET in ml; seconds; the first digits of the network's digest; the label map; trainings
    that the case was in, separated by spaces.

    Raises:
        UserError: If it cannot be written; the earlier one is untouched then.
    """
    records = folder.records()
    if not records:
        return
    rows: list[Sequence[str]] = [_COLUMNS]
    for record in records:
        volumes = [f"{record.volumes_ml[region]:.3f}" for region in REGION_NAMES]
        model, file = record.made_with["network"][:12], folder.labels(record.case).name
        absent, trainings = " ".join(record.absent), " ".join(record.learned_from)
        seconds = f"{record.seconds:.2f}"
        rows.append([record.case, absent, *volumes, seconds, model, file, trainings])
    folder.write_table("summary.csv", csv_text(rows))
