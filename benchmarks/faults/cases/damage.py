"""Faults in the geometry and content of a case whose files are all intact."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cggm_seg.data.cases import MODALITIES
from cggm_seg.data.findings import Code

_PARTS = (*MODALITIES, "seg")


@dataclass(frozen=True)
class Target:
    """Where a fault is put.

    Args:
        folder: The case, in the layout of BraTS 2021.
        number: Of the placement; decides about file, axis and value.
    """

    folder: Path
    number: int

    def file(self, part: str) -> Path:
        """The file of a modality or of the label map."""
        return self.folder / f"{self.folder.name}_{part}.nii.gz"

    def image(self) -> Path:
        """One of the four images."""
        return self.file(MODALITIES[self.number % len(MODALITIES)])

    def any(self) -> Path:
        """One of the five files."""
        return self.file(_PARTS[self.number % len(_PARTS)])


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        code: Of the finding that is due.
        apply: Damages a case and returns the files that the finding may name.
    """

    code: Code
    apply: Callable[[Target], list[Path]]


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(file).dataobj).copy()


def rewrite(file: Path, array: np.ndarray, affine: np.ndarray | None = None) -> list[Path]:
    """Replace voxels, and the affine if given."""
    affine = nib.Nifti1Image.from_filename(file).affine if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    image.set_qform(None, code=0)
    nib.save(image, file)
    return [file]


def _affine(target: Target) -> list[Path]:
    affine = nib.Nifti1Image.from_filename(target.any()).affine.copy()
    affine.flat[target.number % 12] += 1e-3
    return rewrite(target.any(), voxels(target.any()), affine)


def _shape(target: Target) -> list[Path]:
    cut = [slice(None)] * 3
    cut[target.number % 3] = slice(1, None)
    return rewrite(target.any(), voxels(target.any())[tuple(cut)])


def _spacing(target: Target) -> list[Path]:
    affine = nib.Nifti1Image.from_filename(target.any()).affine.copy()
    affine[:, target.number % 3] *= 1.1
    return rewrite(target.any(), voxels(target.any()), affine)


def store_reversed(target: Target) -> list[Path]:
    """The same anatomy at the same place, stored the other way round along an axis: no fault."""
    axis, array = target.number % 3, voxels(target.any())
    affine = nib.Nifti1Image.from_filename(target.any()).affine.copy()
    affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
    affine[:, axis] *= -1
    return rewrite(target.any(), np.flip(array, axis), affine)


def _swapped(target: Target) -> list[Path]:
    files = [target.file(part) for part in ("t1", "t1ce")]
    spare = files[0].with_name("spare")
    files[0].rename(spare)
    files[1].rename(files[0])
    spare.rename(files[1])
    return files


def _relabel(target: Target, value: float) -> list[Path]:
    labels = voxels(target.file("seg"))
    chosen = labels == (4 if (labels == 4).any() else 2)
    dtype = np.uint8 if value == int(value) else np.float32
    return rewrite(target.file("seg"), np.where(chosen, value, labels).astype(dtype))


def _not_finite(target: Target) -> list[Path]:
    array = voxels(target.image()).astype(np.float32)
    place = np.random.default_rng(target.number).integers(array.size)
    array.flat[place] = (np.nan, np.inf, -np.inf)[target.number % 3]
    return rewrite(target.image(), array)


def _empty(target: Target) -> list[Path]:
    return rewrite(target.image(), np.zeros_like(voxels(target.image())))


def _constant(target: Target) -> list[Path]:
    array = voxels(target.image())
    return rewrite(target.image(), np.where(array, np.int16(300 + target.number), np.int16(0)))


def _duplicate(target: Target) -> list[Path]:
    other = target.file(MODALITIES[(target.number + 1) % len(MODALITIES)])
    shutil.copyfile(target.image(), other)
    return [target.image(), other]


def _shifted(target: Target) -> list[Path]:
    step = 1 if target.number % 2 else -1
    return rewrite(target.file("seg"), np.roll(voxels(target.file("seg")), step, axis=2))


def _missing(target: Target) -> list[Path]:
    target.image().unlink()
    return [target.image()]


FAULTS = {
    "affine off by 1e-3": Fault(Code.AFFINE, _affine),
    "another shape": Fault(Code.SHAPE, _shape),
    "another spacing": Fault(Code.AFFINE, _spacing),
    "t1 and t1ce swapped": Fault(Code.SWAPPED, _swapped),
    "label 3": Fault(Code.OTHER_SCHEME, lambda target: _relabel(target, 3)),
    "label 3.9999": Fault(Code.FRACTIONAL_LABEL, lambda target: _relabel(target, 3.9999)),
    "NaN or Inf": Fault(Code.NOT_FINITE, _not_finite),
    "image of zeros": Fault(Code.EMPTY, _empty),
    "constant image": Fault(Code.CONSTANT, _constant),
    "duplicate image": Fault(Code.DUPLICATE, _duplicate),
    "label map shifted by a slice": Fault(Code.SHIFTED, _shifted),
    "missing image": Fault(Code.MISSING, _missing),
}
