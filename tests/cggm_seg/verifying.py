"""Verifications of a small data folder."""

from pathlib import Path

import nibabel as nib
import numpy as np

from cggm_seg.data.findings import Code
from cggm_seg.verification import Verification, verify_data
from tests.cggm_seg.nifti import write_case

SHAPE = (24, 22, 16)


def write_data(folder: Path) -> Path:
    """Writes the cases a, b and c; returns their folder."""
    for seed, case_id in enumerate("abc"):
        write_case(folder, case_id, shape=SHAPE, seed=seed)
    return folder


def verify(data: Path, **options: object) -> Verification:
    """Verifies in this process."""
    return verify_data(data, **{"workers": 1, "progress": False, **options})


def found(data: Path, **options: object) -> list[tuple[Code, str, str]]:
    """Code, case and file name of every finding."""
    findings = verify(data, **options).findings
    assert [f for f in findings if not f.what.startswith("Expected")] == []
    assert [f for f in findings if not f.fix.endswith(".")] == []
    return [(f.code, f.case, f.file.name) for f in findings]


def stored(file: Path) -> np.ndarray:
    """The voxels of a file as they are stored."""
    return np.asarray(nib.load(file).dataobj)
