"""The table of a folder of predictions: what was found in each case, in milliliters."""

import csv
import io

import numpy as np

from cggm_seg.prediction_folder import PredictionFolder
from cggm_seg.regions import CLASSES, REGIONS

_ORDER = ("WT", "TC", "ET")
_COLUMNS = ("case", "absent", *(f"{region}_ml" for region in _ORDER), "seconds", "model", "file")


def region_volumes(labels: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Milliliters of whole tumor, tumor core and enhancing tumor.

    Args:
        labels: Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, shape ``(H, W, Z)``.
        affine: Voxel indices to millimeters, shape ``(4, 4)``.
    """
    voxels = np.bincount(labels.ravel(order="K"), minlength=CLASSES)
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    return {region: float(voxels[[*REGIONS[region]]].sum() * voxel) for region in _ORDER}


def write_summary(folder: PredictionFolder) -> None:
    """Writes ``summary.csv``, a line for every label map that is there as it was made.

    Without any there is no table. Columns: case; absent modalities, separated by spaces; volumes of
    WT, TC and ET in ml; seconds; the first digits of the network's digest; the label map.

    Raises:
        UserError: If it cannot be written; the earlier one is untouched then.
    """
    records = folder.records()
    if not records:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for record in records:
        volumes = [f"{record.volumes_ml[region]:.3f}" for region in _ORDER]
        model, file = record.made_with["network"][:12], folder.labels(record.case).name
        absent = " ".join(record.absent)
        table.writerow([record.case, absent, *volumes, f"{record.seconds:.2f}", model, file])
    folder.write_table("summary.csv", text.getvalue())
