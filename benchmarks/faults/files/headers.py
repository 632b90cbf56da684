"""NIfTI headers of 352 bytes with random damage, around voxels that are intact.

A damaged header may still be a valid one. A read without error must then give the shape, affine and
voxels that nibabel gives.
"""

import gzip
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.faults.files.readers import CASE_ID, PEERS, error_of, is_named, monai, nibabel, ours
from benchmarks.faults.processes.child import extra_memory, in_child, limit_memory
from cggm_seg.data.nifti import read_volume

_SHAPE = (24, 24, 16)
_HEADER = 352
_MOST_EXTRA = 64e6  # bytes
_PEERS_LIMIT = 6 << 30
_PEERS_SHARE = 10  # one in so many files is read by the peers
_READ_FIELDS = ("dim", "datatype", "vox_offset", "scl_slope", "scl_inter", "pixdim", "srow_x")


def measure(quick: bool) -> dict[str, Any]:
    count = 200 if quick else 2000
    with TemporaryDirectory() as name:
        files = _write_files(Path(name), count)
        found, extra = in_child(_read_ours, files)
        unlike = in_child(_unlike_nibabel, [file for file in files if found[file] == "read"])
        sample = files[::_PEERS_SHARE]
        peers = {
            peer: in_child(_read_peer, peer, sample)
            for peer in (() if quick else ("nibabel", "MONAI"))
        }
    outcomes = Counter(found.values())
    return {
        "bar": "DataError or the read of nibabel, and less than 64 MB of extra memory",
        "holds": outcomes["other"] == 0
        and not unlike
        and outcomes["refused"] > 0
        and extra < _MOST_EXTRA,
        "figures": {
            "headers": count,
            "ours": {**outcomes, "unlike nibabel": len(unlike), "extra memory, MB": extra / 1e6},
            "headers read by peers": len(sample),
            **peers,
        },
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    memory = "extra memory, MB"
    peers = [f"{name} {figures[name][memory]:.0f} MB" for name in PEERS if name in figures]
    return (
        "altered headers",
        f"{figures['headers']:,}, at most {figures['ours'][memory]:.1f} MB of extra memory",
        ", ".join(peers),
    )


def _write_files(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(0, 900, _SHAPE, np.int16), np.diag([-1.0, -1, 1, 1]))
    clean = image.to_bytes()
    files = []
    for number in range(count):
        data = _damaged(clean[:_HEADER], rng) + clean[_HEADER:]
        zipped = number % 2 == 0
        files.append(folder / f"{number:04d}.nii{'.gz' if zipped else ''}")
        files[-1].write_bytes(gzip.compress(data, 1) if zipped else data)
    return files


def _damaged(header: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes replaced by random ones, or a value of one field by an extreme one."""
    kind = rng.integers(3)
    if kind == 0:
        damaged = bytearray(header)
        for position in rng.integers(_HEADER, size=rng.integers(1, 9)):
            damaged[position] = rng.integers(256)
        return bytes(damaged)
    record = np.frombuffer(header[:348], nib.Nifti1Header.template_dtype).copy()
    field = record[rng.choice(_READ_FIELDS if kind == 1 else record.dtype.names or ())].reshape(-1)
    field[rng.integers(field.size)] = rng.choice(_extremes(field.dtype))
    return record.tobytes() + header[348:]


def _extremes(dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return np.array([np.nan, np.inf, -np.inf, 0, -1, 1e9, 3e38, 1e-38, 352.5], dtype)
    if dtype.kind == "S":
        return np.array([b"", b"\xff" * dtype.itemsize], dtype)
    info = np.iinfo(dtype)
    return np.array([info.min, info.max, 0, 1, 7, info.max // 2], dtype)


def _read_ours(files: list[Path]) -> tuple[dict[Path, str], int]:
    return extra_memory(lambda: {file: _outcome(file) for file in files})


def _outcome(file: Path) -> str:
    error = error_of(ours, file)
    if error is None:
        return "read"
    return "refused" if is_named(error, file) else "other"


def _unlike_nibabel(files: list[Path]) -> list[str]:
    limit_memory(_PEERS_LIMIT)
    return [file.name for file in files if not _as_nibabel(file)]


def _as_nibabel(file: Path) -> bool:
    volume = read_volume(file, CASE_ID)
    image: Any = nib.load(file)
    array = volume.grid.from_frame(volume.array)
    voxels = np.asanyarray(image.dataobj).reshape(array.shape, order="F")
    with np.errstate(all="ignore"):
        voxels = voxels.astype(np.float32)
        same = np.allclose(array.astype(np.float32), voxels, rtol=1e-5, equal_nan=True)
    affine = volume.grid.header.get_best_affine()
    return same and np.array_equal(affine, image.affine, equal_nan=True)


def _read_peer(peer: str, files: list[Path]) -> dict[str, Any]:
    read = nibabel if peer == "nibabel" else monai()
    limit_memory(_PEERS_LIMIT)
    errors, extra = extra_memory(lambda: Counter(map(partial(_error_name, read), files)))
    return {"outcomes": dict(errors), "extra memory, MB": extra / 1e6}


def _error_name(read: Any, file: Path) -> str:  # noqa: ANN401
    error = error_of(read, file)
    return "read" if error is None else type(error).__name__
