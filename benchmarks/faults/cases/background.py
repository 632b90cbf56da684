"""Images whose background is not zero: shifted or z-scored as a whole, or with noise around.

The z-scores of the brain have to be those of the original, or the case has to be refused by a
finding. Peers normalize as their BraTS recipes do, over what is not zero.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.faults.files.readers import CASE_ID, simulated_case
from cggm_seg.data.checks import intensity_findings
from cggm_seg.data.nifti import Volume, read_volume
from cggm_seg.data.preprocessing import intensity_statistics, prepare_image, zscore

Normalize = Callable[[np.ndarray], np.ndarray]
_MOST = 0.01  # standard deviations


def measure(quick: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = simulated_case(folder / "cohort", (60, 60, 39)).images["t1ce"]
        image = nib.Nifti1Image.from_filename(file)
        original = np.asarray(image.dataobj).astype(np.float32)
        brain = original != 0
        outcomes = {}
        for what, changed in _variants(original).items():
            nib.save(nib.Nifti1Image(changed, image.affine), folder / "changed.nii.gz")
            volume = read_volume(folder / "changed.nii.gz", CASE_ID)
            outcomes[what] = _outcome(volume, file, folder / "changed.nii.gz")
        found = {
            peer: {
                what: _difference(normalize, original, changed, brain)
                for what, changed in _variants(original).items()
            }
            for peer, normalize in ({} if quick else _peers()).items()
        }
    good = sum(value == "refused" or value <= _MOST for value in outcomes.values())
    return {
        "bar": f"z-scores of the brain within {_MOST:g} SD of the original's, or refused",
        "holds": good == len(outcomes),
        "figures": {"backgrounds": len(outcomes), "good": good, "ours": outcomes, **found},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours = figures["ours"].values()
    peers = [
        f"{peer} {sum(value <= _MOST for value in figures[peer].values())}, off by up to "
        f"{max(figures[peer].values()):.1f} SD"
        for peer in ("MONAI", "nnU-Net")
        if peer in figures
    ]
    refused = sum(value == "refused" for value in ours)
    return (
        f"{figures['backgrounds']} backgrounds other than zero",
        f"{figures['good'] - refused} with the original's z-scores, {refused} refused",
        "; ".join(peers),
    )


def _variants(original: np.ndarray) -> dict[str, np.ndarray]:
    rng, zeros = np.random.default_rng(0), original == 0
    noise = rng.normal(0, 0.02 * original.max(), original.shape).astype(np.float32)
    return {
        "background -1024": original - np.float32(1024),
        "background -1": original - np.float32(1),
        "background 7": original + np.float32(7),
        "background 32768": original + np.float32(32768),
        "z-scored as a whole": (original - original.mean()) / original.std(),
        "noise around": np.where(zeros, noise, original),
        "Rician noise around": np.where(zeros, np.abs(noise), original),
    }


def _outcome(volume: Volume, original: Path, file: Path) -> str | float:
    if any(f.is_error for f in intensity_findings(CASE_ID, file, volume)):
        return "refused"
    before = read_volume(original, CASE_ID).array
    brain = before != 0
    return _difference(_ours, before, volume.array, brain)


def _ours(image: np.ndarray) -> np.ndarray:
    prepared = prepare_image(image)[None]
    return zscore(prepared, intensity_statistics(prepared))[0]


def _difference(
    normalize: Normalize, before: np.ndarray, after: np.ndarray, brain: np.ndarray
) -> float:
    return float(np.abs(normalize(after)[brain] - normalize(before)[brain]).max())


def _peers() -> dict[str, Normalize]:
    from monai.transforms import NormalizeIntensity
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
        ZScoreNormalization,
    )

    def nnunet(image: np.ndarray) -> np.ndarray:
        cropped, seg, box = crop_to_nonzero(image[None].astype(np.float32))
        scheme = ZScoreNormalization(use_mask_for_norm=True, intensityproperties={})
        values = np.zeros_like(image, np.float32)
        values[tuple(slice(*edges) for edges in box)] = scheme.run(cropped[0].copy(), seg[0])
        return values

    return {
        "MONAI": lambda image: np.asarray(NormalizeIntensity(nonzero=True)(image)),
        "nnU-Net": nnunet,
    }
