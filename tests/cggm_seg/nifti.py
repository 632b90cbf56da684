"""Tiny NIfTI cases with the layout, header and contrasts of BraTS, for tests only."""

from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
SUFFIXES = {
    "2021": {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2", "seg": "_seg"},
    "2023": {"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w", "seg": "-seg"},
}
# Mean intensity of healthy tissue, NCR, ED and ET.
CONTRASTS = {
    "flair": (300, 350, 700, 500),
    "t1ce": (400, 200, 350, 900),
    "t1": (450, 250, 350, 400),
    "t2": (350, 650, 600, 450),
}


def write_case(
    folder: Path,
    case_id: str,
    *,
    shape: tuple[int, int, int] = (48, 40, 24),
    naming: Literal["2021", "2023"] = "2021",
    seed: int = 0,
    label: bool = True,
    layout: Literal["folder", "flat"] = "folder",
    suffix: str = ".nii.gz",
) -> None:
    """Writes the four modalities of one case as int16 and its label map as uint8.

    Background is exactly 0; NCR, ED and ET are nested and visible in the contrasts.
    """
    rng = np.random.default_rng(seed)
    brain, classes = anatomy(shape, rng)
    for modality, means in CONTRASTS.items():
        image = np.asarray(means, np.float64)[classes] + 25 * rng.standard_normal(shape)
        image = np.where(brain, np.maximum(image.round(), 1), 0).astype(np.int16)
        write_volume(case_file(folder, case_id, modality, naming, layout, suffix), image)
    if label:
        enhancing = 4 if naming == "2021" else 3
        values = np.array([0, 1, 2, enhancing], np.uint8)[classes]
        write_volume(case_file(folder, case_id, "seg", naming, layout, suffix), values)


def anatomy(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Brain mask and class indices (0 background, 1 NCR, 2 ED, 3 ET), both ``(H, W, Z)``."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    brain = np.linalg.norm(grid / (0.85, 0.8, 0.9), axis=-1) <= 1
    distance = np.linalg.norm(grid - rng.uniform(-0.25, 0.25, 3), axis=-1)
    classes = np.select([distance < 0.18, distance < 0.3, distance < 0.45], [1, 3, 2], 0)
    return brain, np.where(brain, classes, 0)


def case_file(
    folder: Path,
    case_id: str,
    part: str,
    naming: str = "2021",
    layout: str = "folder",
    suffix: str = ".nii.gz",
) -> Path:
    """Where :func:`write_case` puts one modality, or the label map for ``part="seg"``."""
    parent = folder / case_id if layout == "folder" else folder
    return parent / f"{case_id}{SUFFIXES[naming][part]}{suffix}"


def write_volume(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Writes one NIfTI file with the codes of BraTS, sform 2 and qform 0."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    image.set_qform(None, code=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
