"""Cohort of ball-like lesions in ellipsoid heads, by a simulator that shares nothing with ours.

What a training is claimed to learn should not hang on one simulator. Cases measure 120 x 120 x 78
voxels of 2 mm; heads have gray and white matter and ventricles, lesions a core of 5 to 10 voxels in
radius with an enhancing rim of 2 or 3 voxels, a third brighter than white matter in T1ce.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (120, 120, 78)
HALF = np.array([43.0, 52.0, 35.0])  # voxels, half axes of the head
AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])
# mean intensity of CSF, gray and white matter, NCR, ED and ET
MEANS = {
    "flair": (120, 420, 380, 480, 760, 640),
    "t1ce": (180, 400, 600, 240, 430, 800),
    "t1": (180, 410, 600, 300, 430, 440),
    "t2": (900, 520, 400, 860, 700, 620),
}
NOISE = 25.0
LABELS = np.array([0, 0, 0, 1, 2, 4], np.uint8)


def write_cohort(folder: Path, cases: int = 8, seed: int = 0) -> None:
    """Writes ``<folder>/BALL_000/BALL_000_flair.nii.gz`` and so on; complete cases are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        case = folder / f"BALL_{number:03d}"
        if not (case / f"{case.name}_seg.nii.gz").exists():
            case.mkdir(exist_ok=True)
            write_case(case, np.random.default_rng([seed, number]))
    (folder / "cohort.json").write_text('{"generator": "ball-like lesions", "simulated": true}\n')


def write_case(case: Path, rng: np.random.Generator) -> None:
    """Writes one case, the label map last."""
    tissue, brain = anatomy(rng)
    for name, means in MEANS.items():
        image = gaussian_filter(np.asarray(means, np.float32)[tissue], 0.5)
        image *= rng.uniform(0.85, 1.15) * (1 + 0.06 * smooth(rng, 20))
        image += NOISE * rng.standard_normal(SHAPE, np.float32)
        save(case, name, np.where(brain, np.maximum(image.round(), 1), 0).astype(np.int16))
    save(case, "seg", np.where(brain, LABELS[tissue], 0).astype(np.uint8))


def anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Index into a row of :data:`MEANS`, and the brain, both of shape :data:`SHAPE`."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), -1)
    depth = 1 - np.linalg.norm(grid / (HALF * rng.uniform(0.92, 1.0, 3)), axis=-1)
    depth += 0.02 * smooth(rng, 6)
    ventricle = np.linalg.norm((grid - rng.normal(0, 2, 3)) / (9, 18, 6), axis=-1) < 1
    tissue = np.where(ventricle, 0, np.where(depth + 0.05 * smooth(rng, 4) < 0.16, 1, 2))
    center = rng.uniform(0.25, 0.5) * HALF * direction(rng)
    core, rim, edema = rng.uniform(5, 10), rng.uniform(2, 3), rng.uniform(5, 8)
    stretched = (grid - center) / np.exp(rng.normal(0, 0.08, 3))
    inside = core - np.linalg.norm(stretched, axis=-1) + 0.6 * smooth(rng, 5)
    for label, least in ((4, -edema), (5, 0.0), (3, rim)):
        tissue[inside > least] = label
    return tissue, depth > 0


def direction(rng: np.random.Generator) -> np.ndarray:
    """A random direction, of length 1."""
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def smooth(rng: np.random.Generator, width: float) -> np.ndarray:
    """A random field of mean 0 and variance 1, smooth over `width` voxels."""
    field = gaussian_filter(rng.standard_normal(SHAPE, np.float32), width)
    return field / field.std()


def save(case: Path, part: str, volume: np.ndarray) -> None:
    """Writes one volume with the header codes of BraTS."""
    image = nib.Nifti1Image(volume, AFFINE)
    image.set_sform(AFFINE, code=2)
    image.set_qform(AFFINE, code=0)
    nib.save(image, case / f"{case.name}_{part}.nii.gz")
