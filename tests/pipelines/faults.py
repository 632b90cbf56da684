"""Ways to damage one case of BraTS 2021 on the disk."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.cggm_seg.nifti import AFFINE, case_file, write_case, write_volume

SHAPE = (40, 36, 16)


def _missing(file: Path) -> None:
    file.unlink()


def _truncated(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _flipped(file: Path) -> None:
    data, content = file.read_bytes(), gzip.decompress(file.read_bytes())
    # Among equal voxels some flips change nothing, such as another distance of a repetition.
    copies = (_with_flip(data, place) for place in range(len(data) // 2, len(data)))
    file.write_bytes(next(copy for copy in copies if _unzipped(copy) != content))


def _with_flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _unzipped(data: bytes) -> bytes | None:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def _other_shape(file: Path) -> None:
    write_volume(file, _voxels(file)[:-1])


def _other_affine(file: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 2
    write_volume(file, _voxels(file), moved)


def _nan(file: Path) -> None:
    voxels = _voxels(file).astype(np.float32)
    voxels[20, 18, 8] = np.nan
    write_volume(file, voxels)


def _unknown_label(file: Path) -> None:
    voxels = _voxels(file).copy()
    voxels[voxels == 4] = 7
    write_volume(file, voxels)


def _voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


# Name to the damaged part, the damage, and what the message must say.
FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("t1", _missing, "no such file"),
    "truncated": ("t2", _truncated, "truncated or damaged"),
    "flipped": ("flair", _flipped, "damaged"),
    "shape": ("t1ce", _other_shape, "Expected shape (40, 36, 16)"),
    "affine": ("t2", _other_affine, "Expected the affine"),
    "nan": ("flair", _nan, "NaN or Inf in 1 of them"),
    "label": ("seg", _unknown_label, "found 7"),
}


def write_bad_case(folder: Path, fault: str) -> Path:
    """Writes a case that is named after its fault; returns the faulty file."""
    part, damage, _ = FAULTS[fault]
    write_case(folder, fault, shape=SHAPE)
    file = case_file(folder, fault, part)
    damage(file)
    return file


def write_good_cases(folder: Path, count: int = 3) -> list[str]:
    """Writes ``good0``, ``good1`` and so on; returns their identifiers."""
    names = [f"good{k}" for k in range(count)]
    for k, name in enumerate(names):
        write_case(folder, name, shape=SHAPE, seed=k)
    return names
