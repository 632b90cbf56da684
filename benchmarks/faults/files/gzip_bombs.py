"""Small gzip files that decompress to a gigabyte, each read in a process of its own."""

import gzip
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.faults.files.readers import PEERS, Reader, error_of, is_named, monai, nibabel, ours
from benchmarks.faults.processes.child import extra_memory, in_child, limit_memory

_MOST_EXTRA = 200e6  # bytes
_LIMIT = 6 << 30
_PIECE = 1 << 26


def measure(quick: bool) -> dict[str, Any]:
    length = 1 << (28 if quick else 30)
    peers = () if quick else ("nibabel", "MONAI")
    with TemporaryDirectory() as folder:
        files = _write_bombs(Path(folder), length)
        figures = {name: in_child(_read_all, name, files) for name in ("ours", *peers)}
    return {
        "bar": "every bomb refused by case and file with less than 200 MB of extra memory",
        "holds": all(
            found["named"] and found["extra memory, MB"] * 1e6 < _MOST_EXTRA
            for found in figures["ours"].values()
        ),
        "figures": {"decompressed, MB": length / 1e6, **figures},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    memory = "extra memory, MB"
    most = {
        name: max(found[memory] for found in figures[name].values())
        for name in ("ours", *PEERS)
        if name in figures
    }
    return (
        f"gzip bombs of {figures['decompressed, MB'] / 1000:.1f} GB",
        f"refused within {most.pop('ours'):.0f} MB",
        ", ".join(f"{name} {value:,.0f} MB" for name, value in most.items()),
    )


def _write_bombs(folder: Path, length: int) -> dict[str, Path]:
    """One file per kind of header, each followed by as many zeros as make up the length."""
    zeros = gzip.compress(bytes(_PIECE), 9) * (length // _PIECE)
    late = _header((64, 64, 64))
    late["vox_offset"] = length - (1 << 18)
    headers = {
        "header declares less": _header((240, 240, 155)),
        "header declares all": _header((1 << 10, 1 << 10, length >> 20)),
        "header declares more": _header((32767, 32767, 32767)),
        "voxels at the end": late,
    }
    files = {}
    for bomb, header in headers.items():
        files[bomb] = folder / f"{bomb}.nii.gz"
        files[bomb].write_bytes(gzip.compress(header.binaryblock + bytes(4)) + zeros)
    return files


def _header(shape: tuple[int, int, int]) -> nib.Nifti1Header:
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header


def _read_all(name: str, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    read = {"ours": lambda: ours, "nibabel": lambda: nibabel, "MONAI": monai}[name]()
    limit_memory(_LIMIT)
    return {bomb: _read(read, file) for bomb, file in files.items()}


def _read(read: Reader, file: Path) -> dict[str, Any]:
    start = time.perf_counter()
    error, extra = extra_memory(lambda: error_of(read, file))
    return {
        "error": "none" if error is None else type(error).__name__,
        "named": is_named(error, file),
        "extra memory, MB": extra / 1e6,
        "seconds": time.perf_counter() - start,
    }
