"""Seconds that a cohort of many tiny cases takes to find, verify, cache, start and evaluate.

Each number of cases has a folder of its own, and processes are left out: what is measured is what
a case costs as others come to it. Memory maps and open files are counted once a training would
have begun, in a process that may open 256 files.

    python -m benchmarks.data.many_cases [--json FILE] [--counts 500 1000 2000 4000]
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.machine import machine
from cggm_seg.data import SliceDataset, find_cases, open_cohort
from cggm_seg.data.cache import build_cache
from cggm_seg.evaluation import evaluate_folder
from cggm_seg.verification import verify_data

MODALITIES = ("flair", "t1ce", "t1", "t2")
SHAPE = (12, 12, 8)


@dataclass(frozen=True)
class Options:
    """What a training would say."""

    used: tuple[str, ...] = MODALITIES
    missing: str = "refuse"
    labels: str | None = None
    cache: Path | None = None
    manifest: Path | None = None
    processes: int = 1
    strict: bool = True
    validation_fraction: float = 0.2
    patients: Path | None = None
    folds: int | None = None
    fold: int | None = None
    seed: int = 0


def write_cohort(folder: Path, count: int) -> None:
    """Labelled cases of 12 x 12 x 8 voxels, no two alike, and predictions equal to the labels."""
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    head = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine).header
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    for number in range(count):
        case_id = f"BraTS2021_{number:05d}"
        (folder / "data" / case_id).mkdir(parents=True)
        for name in (*MODALITIES, "seg"):
            values = rng.integers(50, 900, SHAPE, np.int16) * brain
            if name == "seg":
                values = np.choose(values % 7 * brain, [0, 1, 2, 4, 0, 0, 0]).astype(np.int16)
            image = nib.Nifti1Image(values, affine, head)
            nib.save(image, folder / "data" / case_id / f"{case_id}_{name}.nii")
        (folder / "found").mkdir(exist_ok=True)
        nib.save(image, folder / "found" / f"{case_id}.nii.gz")


def stages(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done with a cohort, in the order in which it is done."""
    data = folder / "data"
    yield "find", lambda: find_cases(data, labelled=True)
    yield "verify", lambda: verify_data(data, workers=1, progress=False)
    cases, _ = find_cases(data, labelled=True)
    yield "cache", lambda: build_cache(cases, data / ".slices", workers=1, progress=False)
    yield "start", lambda: start(data)
    yield "evaluate", lambda: evaluate_folder(folder / "found", data, progress=False)


def start(data: Path) -> SliceDataset:
    """A training up to its first slice."""
    cohort = open_cohort(data, Options())
    slices = SliceDataset(cohort.cache, cohort.split.training, size=16, augment=False)
    _ = cohort.contents, cohort.lacking, slices[0, 0]
    return slices


def main() -> None:
    """Measure every number of cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    rows = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as name:
            write_cohort(Path(name), count)
            row: dict[str, float] = {"cases": count}
            for stage, run in stages(Path(name)):
                began = time.process_time()
                kept = run()
                row[stage] = round(time.process_time() - began, 3)
                if stage == "start":
                    row["maps"] = Path("/proc/self/maps").read_text().count("/.slices/")
                    row["files"] = len(os.listdir("/proc/self/fd"))
            del kept
        rows.append(row)
        print("  ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if given.json:
        found = {"rows": rows, "map_limit": limit, "conditions": machine("numpy", "nibabel")}
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
