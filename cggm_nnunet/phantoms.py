"""Simulated data sets in nnU-Net's layout: an organ with a lesion, in several contrasts.

A number measured on one says nothing about patients. Geometry and contrasts are made up, so that
commands, tests and how-tos have data without a license agreement.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cggm.errors import UserError
from cggm.runs import new_folder, write_atomically, write_json
from cggm_nnunet.conversion import dataset_folder

_SHAPE = (48, 48, 32)
_TISSUES = ("air", "body", "organ", "lesion")
_TEST_CASES = 2


@dataclass(frozen=True)
class Phantom:
    """What a simulated body region looks like.

    Attributes:
        channels: Modality to the mean of each tissue: outside, body, organ, lesion.
        organ: What label 1 is called; label 2 is its lesion.
        noise: Standard deviation, as a share of the contrasts' range.
    """

    channels: Mapping[str, tuple[float, float, float, float]]
    organ: str
    noise: float = 0.08


PHANTOMS: dict[str, Phantom] = {
    "prostate": Phantom({"T2": (0, 300, 620, 330), "ADC": (0, 900, 1500, 700)}, "gland"),
    "ct": Phantom(
        {"arterial": (-1000, 40, 90, 150), "venous": (-1000, 60, 140, 80)}, "liver", noise=0.02
    ),
    "brain": Phantom(
        {"FLAIR": (0, 420, 800, 780), "T1c": (0, 600, 500, 1000), "T2": (0, 420, 700, 960)}, "edema"
    ),
}
"""Phantoms by name. On T2 of the prostate, a lesion looks like the body around the gland; of the
two CT phases one shows it bright and the other one dark; in the brain T1c alone tells it well."""


def simulate_dataset(
    raw: Path,
    number: int,
    kind: str,
    *,
    cases: int = 6,
    regions: bool = False,
    shape: tuple[int, int, int] = _SHAPE,
    seed: int = 0,
) -> Path:
    """Write a raw nnU-Net data set of simulated cases, with two more of them for a test.

    Args:
        raw: ``nnUNet_raw``; the folder of the data set is made in it.
        number: Of the data set, 1 to 999.
        kind: One of :data:`PHANTOMS`.
        cases: For training.
        regions: Whether organ and lesion are regions, one within the other, instead of classes.
        shape: Voxels along each axis, of 1 mm each.
        seed: The same seed gives the same cases.

    Returns:
        The folder, ``DatasetNNN_Simulated<kind>``.

    Raises:
        UserError: If the kind is unknown, or the folder holds something.
    """
    if kind not in PHANTOMS:
        raise UserError(f"Unknown kind {kind!r} of data.", f"Give one of {', '.join(PHANTOMS)}.")
    phantom = PHANTOMS[kind]
    if cases < 1 or seed < 0:
        what = f"Expected at least 1 case and a seed of at least 0, but got {cases} and {seed}."
        raise UserError(what, "Correct them.")
    folder = dataset_folder(raw, number, f"Simulated{kind.capitalize()}")
    with new_folder(folder) as draft:
        for part, count in (("Tr", cases), ("Ts", _TEST_CASES)):
            for images in (draft / f"images{part}", draft / f"labels{part}"):
                images.mkdir()
            for case in range(count):
                rng = np.random.default_rng([seed, part == "Ts", case])
                _write_case(draft, part, f"case_{case:03d}", phantom, shape, rng)
        write_json(draft / "dataset.json", dataset_description(phantom, cases, regions=regions))
    return folder


def dataset_description(phantom: Phantom, cases: int, *, regions: bool) -> dict[str, object]:
    """Content of ``dataset.json``.

    Args:
        phantom: What the cases show.
        cases: For training.
        regions: Whether labels are regions, one within the other.
    """
    organ: object = [1, 2] if regions else 1
    described: dict[str, object] = {
        "channel_names": {str(i): name for i, name in enumerate(phantom.channels)},
        "labels": {"background": 0, phantom.organ: organ, "lesion": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "description": "SIMULATED: no patient data",
    }
    return described | ({"regions_class_order": [1, 2]} if regions else {})


def _write_case(
    folder: Path,
    part: str,
    name: str,
    phantom: Phantom,
    shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    tissue = _tissues(shape, rng)
    for channel, means in enumerate(phantom.channels.values()):
        spread = phantom.noise * (max(means) - min(means))
        texture = gaussian_filter(rng.standard_normal(shape), 2.0) * 3
        image = np.array(means, np.float32)[tissue] + spread * (
            rng.standard_normal(shape) + texture * (tissue > 0)
        )
        file = folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz"
        _write(file, image.astype(np.float32))
    labels = np.where(tissue >= _TISSUES.index("organ"), tissue - 1, 0)
    _write(folder / f"labels{part}" / f"{name}.nii.gz", labels.astype(np.uint8))


def _tissues(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Index into the tissues of every voxel: ellipsoids, each within the one before."""
    size = np.array(shape, float)
    axes = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)

    def ellipsoid(center: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.bool_]:
        distance: NDArray[np.float64] = (((axes - center) / radii) ** 2).sum(-1)
        return distance <= 1

    center = size / 2 + rng.uniform(-0.05, 0.05, 3) * size
    radii = size * rng.uniform(0.22, 0.28, 3)
    lesion = center + rng.uniform(-0.4, 0.4, 3) * radii
    tissue = np.zeros(shape, np.int64)
    for index, mask in enumerate(
        (
            ellipsoid(size / 2, size * 0.47),
            ellipsoid(center, radii),
            ellipsoid(lesion, radii * rng.uniform(0.35, 0.5)),
        ),
        start=1,
    ):
        tissue[mask] = index
    return tissue


def _write(file: Path, array: NDArray[np.generic]) -> None:
    data: bytes = nib.Nifti1Image(array, np.eye(4)).to_bytes()
    write_atomically(file, gzip.compress(data, 1, mtime=0))
