"""Label values of segmentation files, and the classes that they stand for."""

from pathlib import Path

import numpy as np

from cggm_seg.data.cases import Naming
from cggm_seg.data.findings import Code, Finding

# What the files hold for background, NCR, ED and ET, our classes 0 to 3.
FILE_LABELS: dict[Naming, tuple[int, int, int, int]] = {
    "2021": (0, 1, 2, 4),
    "2023": (0, 1, 2, 3),
}

_ROUNDING = 1e-5  # of label values in files of floating-point voxels
_LARGEST_ROUNDING = 0.25  # from which on a label might as well be an interpolated one


def to_classes(
    case_id: str, file: Path, values: np.ndarray, naming: Naming, rounding: float = 0.0
) -> np.ndarray:
    """Classes 0 background, 1 NCR, 2 ED, 3 ET, uint8, of the labels that a file holds.

    Args:
        case_id: Named in errors.
        file: Named in errors.
        values: What it holds, any shape.
        naming: Scheme of the case, which decides what the labels stand for.
        rounding: By how much scaled storage may have changed a label.

    Raises:
        Finding: If a label is unknown.
    """
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        # A scaled file holds multiples of its slope: 4 of 255 steps leave 1.992 of a 2.
        tolerance = min(_ROUNDING + 1.01 * rounding, _LARGEST_ROUNDING)
        values = np.where(np.abs(values - rounded) < tolerance, rounded, values)
    allowed = FILE_LABELS[naming]
    flat = values.ravel(order="K")  # selects 9 times faster than a 3-D array
    unknown = np.setdiff1d(flat[flat != 0], allowed)
    if unknown.size:
        found = ", ".join(f"{value:g}" for value in unknown[:5])
        what = f"Expected labels {allowed} of a {naming} case, but found {found}."
        raise Finding(
            _label_code(unknown, naming), case_id, file, what, _label_fix(unknown, naming)
        )
    classes = values.astype(np.uint8)
    classes[classes == allowed[3]] = 3
    return classes


def _label_code(unknown: np.ndarray, naming: Naming) -> Code:
    if not np.isfinite(unknown).all():
        return Code.NOT_FINITE
    if (unknown != np.rint(unknown)).any():
        return Code.FRACTIONAL_LABEL
    other = 3 if naming == "2021" else 4
    return Code.OTHER_SCHEME if unknown.tolist() == [other] else Code.UNKNOWN_LABEL


def _label_fix(unknown: np.ndarray, naming: Naming) -> str:
    if _label_code(unknown, naming) is not Code.OTHER_SCHEME:
        return "Map the labels to background, NCR, ED and ET, or leave the case out."
    if naming == "2021":
        return (
            "Label 3 is the enhancing tumor of the 2023 scheme: "
            "change it to 4, or rename the files as in 2023 (-t2f, -t1c, -t1n, -t2w, -seg)."
        )
    return (
        "Label 4 is the enhancing tumor of the 2021 scheme: change it to 3, or rename the "
        "files as in 2021. In the 2024 data it is the resection cavity: change it to 0."
    )
