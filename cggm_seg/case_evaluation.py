"""Scores of one predicted file, by the rules of BraTS 2021 or 2023."""

from pathlib import Path
from typing import Literal

import numpy as np

from cggm.errors import DataError
from cggm_seg.case_scores import Row, case_metrics
from cggm_seg.cases import Case
from cggm_seg.lesions import lesion_metrics
from cggm_seg.volumes import read_labels

_AFFINE_TOLERANCE = 1e-3  # mm

Rule = Literal["brats2021", "brats2023"]


def evaluate_case(case: Case, file: Path, rule: Rule) -> Row:
    """Scores one predicted label map against its reference.

    Args:
        case: A labelled case.
        file: The prediction, with the label values of the case's naming scheme.
        rule: ``brats2021`` scores whole volumes, see :func:`cggm_seg.case_scores.case_metrics`,
            ``brats2023`` lesions, see :func:`cggm_seg.lesions.lesion_metrics`.

    Returns:
        The keys of :data:`cggm_seg.case_scores.METRICS`.

    Raises:
        DataError: If a file cannot be read, or their grids differ.
    """
    assert case.label is not None
    wanted, like = read_labels(case.label, case.id, case.naming)
    found, header = read_labels(file, case.id, case.naming)
    if found.shape != wanted.shape:
        what = f"Expected shape {wanted.shape} as of {case.label}, but found {found.shape}."
        raise DataError(case.id, file, what, "Predict on the grid of the case's images.")
    affine, expected = header.get_best_affine(), like.get_best_affine()
    if not np.allclose(affine, expected, rtol=0, atol=_AFFINE_TOLERANCE):
        what = f"Expected the affine {expected.tolist()} of {case.label}, found {affine.tolist()}."
        raise DataError(case.id, file, what, "Keep the affine of the case's images.")
    score = lesion_metrics if rule == "brats2023" else case_metrics
    return score(found, wanted, tuple(np.linalg.norm(expected[:3, :3], axis=0).tolist()))
