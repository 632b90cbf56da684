"""One image stored in each of the 48 orientations of a grid, and headers that tell none for sure.

Ours is right if all are the same array in memory, and if that array, written on the grid of the
file, is what the file holds. A peer is right if its array is the one that it reads of the original;
each is asked as it reads by default and as it reads when told to reorient.
"""

from collections.abc import Callable, Mapping
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.faults.files.readers import CASE_ID, error_of, is_named, simulated_case
from cggm_seg.data.nifti import read_volume

Read = Callable[[Path], np.ndarray]
_DOUBTFUL = ("neither form", "forms that disagree", "no clinical size", "a singular affine")


def measure(quick: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        original = simulated_case(folder / "cohort", (60, 50, 39)).images["t1ce"]
        files = [*_oriented(original, folder)][:: 7 if quick else 1]
        right = sum(_is_right(file, original) for file in files)
        doubtful = _doubtful(original, folder)
        refused = {what: is_named(error_of(_ours, f), f) for what, f in doubtful.items()}
        found = {
            peer: {
                "right": sum(_same(read, file, original) for file in files),
                "doubtful headers read": sum(error_of(read, f) is None for f in doubtful.values()),
            }
            for peer, read in _peers(quick).items()
        }
    return {
        "bar": f"{len(files)} of {len(files)} the same array, written back as they were; headers "
        "without a sure orientation or size refused by case and file",
        "holds": right == len(files) and all(refused.values()),
        "figures": {
            "orientations": len(files),
            "ours": {"right": right, "doubtful headers refused": sum(refused.values())},
            "doubtful headers": len(doubtful),
            **found,
        },
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours, count = figures["ours"], figures["orientations"]
    peers = [
        n.replace(",", " with") + f" {f['right']}"
        for n, f in figures.items()
        if isinstance(f, dict) and n != "ours"
    ]
    return (
        f"{count} orientations of one image, and headers that tell none for sure",
        f"{ours['right']} the same in memory and on the file's grid, "
        f"{ours['doubtful headers refused']} of {figures['doubtful headers']} headers refused",
        f"the same in memory: {', '.join(peers)}",
    )


def _oriented(original: Path, folder: Path) -> list[Path]:
    image, files = nib.Nifti1Image.from_filename(original), []
    for number, (axes, flips) in enumerate(
        product(permutations(range(3)), product((1, -1), repeat=3))
    ):
        turned = image.as_reoriented(np.array([*zip(axes, flips, strict=True)], float))
        turned.set_sform(turned.affine, 1)
        turned.set_qform(turned.affine, 1)
        files.append(folder / f"{number:02d}.nii.gz")
        nib.save(turned, files[-1])
    return files


def _doubtful(original: Path, folder: Path) -> dict[str, Path]:
    files = {what: folder / f"{what}.nii.gz" for what in _DOUBTFUL}
    for what, file in files.items():
        image = nib.Nifti1Image.from_filename(original)
        affine = image.affine.copy()
        if what == "neither form":
            image.set_sform(affine, 0)
            image.set_qform(affine, 0)
        elif what == "forms that disagree":
            image.set_qform(affine @ np.diag([-1.0, 1, 1, 1]), 1)
            image.set_sform(affine, 1)
        elif what == "no clinical size":
            image.set_sform(affine @ np.diag([1e3, 1e3, 1e3, 1]), 1)
            image.set_qform(None, 0)
        else:
            image.set_sform(affine @ np.diag([1.0, 1, 0, 1]), 1)
            image.set_qform(None, 0)
        nib.save(image, file)
    return files


def _ours(file: Path) -> np.ndarray:
    return read_volume(file, CASE_ID).array


def _is_right(file: Path, original: Path) -> bool:
    volume = read_volume(file, CASE_ID)
    stored = np.asarray(nib.Nifti1Image.from_filename(file).dataobj)
    back = volume.grid.from_frame(volume.array)
    return np.array_equal(volume.array, _ours(original)) and np.array_equal(back, stored)


def _same(read: Read, file: Path, original: Path) -> bool:
    return np.array_equal(read(file), read(original))


def _peers(quick: bool) -> dict[str, Read]:
    peers: dict[str, Read] = {
        "nibabel": lambda file: np.asarray(nib.Nifti1Image.from_filename(file).dataobj),
        "nibabel, as_closest_canonical": lambda file: np.asarray(
            nib.as_closest_canonical(nib.Nifti1Image.from_filename(file)).dataobj
        ),
    }
    return peers if quick else peers | _monai() | _nnunet()


def _monai() -> dict[str, Read]:
    from monai.transforms import Compose, LoadImage, Orientation

    load = LoadImage(image_only=True, ensure_channel_first=True)
    turn = Compose([load, Orientation("LPS", labels=None)])
    return {
        "MONAI": lambda file: np.asarray(load(file)),
        "MONAI, Orientation": lambda file: np.asarray(turn(file)),
    }


def _nnunet() -> dict[str, Read]:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    return {
        "nnU-Net": lambda file: SimpleITKIO().read_images([str(file)])[0],
        "nnU-Net, WithReorient": lambda file: NibabelIOWithReorient().read_images([str(file)])[0],
    }
