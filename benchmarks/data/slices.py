"""Speed, memory and disk use of slice feeding, against MONAI in the same run, on one thread.

    python -m benchmarks.data.slices [--json FILE]

Every figure is the median of five rounds; a round measures each contender once, so that a change
of load meets all. Files are read from the page cache.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandSpatialCropd,
    SqueezeDimd,
)
from scipy.ndimage import gaussian_filter

from benchmarks.machine import machine
from cggm_seg.data.cache import SliceCache, build_cache, entries
from cggm_seg.data.cases import Case, find_cases
from cggm_seg.data.slices import SliceDataset

ROUNDS = 5
SHAPE = (240, 240, 155)
CROP = 160
# Mean intensity of healthy tissue, NCR, ED and ET.
CONTRASTS = {
    "flair": (300, 350, 700, 500),
    "t1ce": (400, 200, 350, 900),
    "t1": (450, 250, 350, 400),
    "t2": (350, 650, 600, 450),
}
OURS, PLAIN = "SliceDataset", "monai Dataset"
COPIED, SHARED = "monai CacheDataset", "monai CacheDataset(copy_cache=False)"
BUILD = "cache build"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    rows = compare(figures)
    print_table(figures, rows)
    if options.json:
        result = {
            "machine": machine("torch", "monai", "numpy", "nibabel"),
            "figures": figures,
            "targets": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path) -> dict[str, Any]:
    """Seconds per slice and per build, MB per case in memory and on disk."""
    write_case(folder / "data" / "BraTS2021_00000", seed=0)
    [case], _ = find_cases(folder / "data", labelled=True)
    cache, _ = build_cache([case], folder / "cache", workers=1, progress=False)
    ours = SliceDataset(cache, cache.case_ids, size=CROP, slices_per_case=1000, augment=False)
    item = {"image": list(map(str, case.images.values())), "label": str(case.label)}
    plain = Dataset([item], transform=monai_transform())
    copied = CacheDataset([item], transform=monai_transform(), progress=False)
    shared = CacheDataset([item], transform=monai_transform(), progress=False, copy_cache=False)
    check_same_scores(cache, case, copied)

    contenders: dict[str, tuple[Callable[[int], object], int]] = {
        OURS: (lambda k: ours[0, k], 500),
        PLAIN: (lambda _: plain[0], 1),
        COPIED: (lambda _: copied[0], 3),
        SHARED: (lambda _: shared[0], 100),
        BUILD: (lambda _: build_afresh(case, folder), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (action, count) in contenders.items():
            seconds[name].append(time_of(action, count))
    entry = entries(folder / "cache")[case.id][0].stat().st_size
    cached = sum(tensor.nbytes for tensor in copied._cache[0].values())
    return {
        "seconds": {name: median(times) for name, times in seconds.items()},
        "rounds": seconds,
        "memory_mb": {OURS: entry / 1e6, COPIED: cached / 1e6, SHARED: cached / 1e6, PLAIN: 0.0},
        "disk_mb": entry / 1e6,
        "sources_mb": sum(file.stat().st_size for file in case.images.values()) / 1e6,
    }


def monai_transform() -> Compose:
    keys = ["image", "label"]
    return Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            RandSpatialCropd(keys, (CROP, CROP, 1), random_size=False),
            SqueezeDimd(keys, -1),
        ]
    )


def time_of(action: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for k in range(count):
        action(k)
    return (time.perf_counter() - start) / count


def build_afresh(case: Case, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as target:
        build_cache([case], Path(target), workers=1, progress=False)


def check_same_scores(cache: SliceCache, case: Case, monai_cache: CacheDataset) -> None:
    """A ratio of speeds counts only if both sides give the same slices."""
    volume = monai_cache._cache[0]["image"].numpy()
    brain = np.argwhere(volume.any(axis=0))
    rows, columns, slices = (
        slice(a, b + 1) for a, b in zip(brain.min(0), brain.max(0), strict=True)
    )
    for z in (0, cache.depth(case.id) // 2):
        expected = volume[:, rows, columns, slices.start + z]
        np.testing.assert_allclose(cache.read(case.id, z)[0], expected, atol=1e-3)


def write_case(folder: Path, seed: int, shape: tuple[int, int, int] = SHAPE) -> None:
    """A case of BraTS size and, at 2.5 MB per modality, of its entropy."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    axes = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    brain = np.linalg.norm(grid / np.float32([0.58, 0.72, 0.88]), axis=-1) <= 1
    distance = np.linalg.norm(grid - rng.uniform(-0.2, 0.2, 3).astype(np.float32), axis=-1)
    classes = np.select([distance < 0.1, distance < 0.17, distance < 0.3], [1, 3, 2], 0) * brain
    tissue = gaussian_filter(rng.standard_normal(shape, np.float32), 3)
    tissue *= 0.15 / tissue.std()
    for modality, means in CONTRASTS.items():
        image = np.float32(means)[classes] * (1 + tissue)
        image += 20 * rng.standard_normal(shape, np.float32)
        image = np.where(brain, np.maximum(image.round(), 1), 0).astype(np.int16)
        save(folder / f"{folder.name}_{modality}.nii.gz", image)
    save(folder / f"{folder.name}_seg.nii.gz", np.uint8([0, 1, 2, 4])[classes])


def save(file: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), file)


def compare(figures: dict[str, Any]) -> list[dict[str, Any]]:
    seconds, memory = figures["seconds"], figures["memory_mb"]
    rows = [
        ("speed over Dataset", seconds[PLAIN] / seconds[OURS], ">=", 500),
        ("speed over CacheDataset", seconds[COPIED] / seconds[OURS], ">=", 50),
        ("speed over copy_cache=False", seconds[SHARED] / seconds[OURS], ">=", 3),
        ("memory of copy_cache=False", memory[OURS] / memory[SHARED], "<=", 0.5),
        ("cache build, s per case and core", seconds[BUILD], "<=", 0.30),
        ("cache on disk, MB per case", figures["disk_mb"], "<=", 40),
    ]
    return [
        {
            "what": what,
            "value": value,
            "target": f"{relation} {target}",
            "reached": value >= target if relation == ">=" else value <= target,
        }
        for what, value, relation, target in rows
    ]


def print_table(figures: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(f"{'':40s}{'ms per slice':>14s}{'MB per case':>14s}")
    for name, size in figures["memory_mb"].items():
        print(f"{name:40s}{figures['seconds'][name] * 1e3:14.3f}{size:14.1f}")
    print(f"\n{'':40s}{'measured':>14s}{'target':>14s}")
    for row in rows:
        verdict = "" if row["reached"] else "  missed"
        print(f"{row['what']:40s}{row['value']:14.2f}{row['target']:>14s}{verdict}")


if __name__ == "__main__":
    main()
