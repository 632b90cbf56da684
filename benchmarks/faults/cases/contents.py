"""Faults of geometry and content, each in several places of one cohort, that verify_data lists.

Faulty cases are copies of simulated ones, with noise of their own so that none is a duplicate.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.cases.damage import FAULTS, Fault, Target, rewrite, store_reversed, voxels
from cggm_seg.data.cases import MODALITIES
from cggm_seg.data.findings import Finding
from cggm_seg.simulation.cohort import simulate_cohort
from cggm_seg.verification.cohort import verify_data

# Fault to identifier of the case to what is to be found in it.
Due = dict[str, dict[str, tuple[Fault, list[Path]]]]


def measure(quick: bool) -> dict[str, Any]:
    shape, placements = ((60, 60, 39), 2) if quick else ((80, 80, 52), 20)
    with TemporaryDirectory() as name:
        originals, data = Path(name) / "originals", Path(name) / "data"
        simulate_cohort(originals, cases=6 if quick else 20, shape=shape, progress=False)
        cases = sorted(folder for folder in originals.iterdir() if folder.is_dir())
        _copy_clean(cases, data)
        _copy_reversed(cases, data, placements)
        due = _copy_faulty(cases, data, placements)
        listed = verify_data(data, workers=1 if quick else 2, progress=False).findings
    found = defaultdict(list)
    for finding in listed:
        found[finding.case].append(finding)
    return _judge(due, found, len(cases) + placements, shape) | {
        "bar": f"{len(FAULTS)} faults x {placements} placements, all found with the right code and "
        "file, and no finding in an intact case, also where one file has another orientation"
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    found = [text.split(" of ") for text in figures["found"].values()]
    hits, due = (sum(int(pair[side]) for pair in found) for side in (0, 1))
    alarms = len(figures["findings in intact cases"])
    return (
        f"wrong geometry or content, {len(found)} kinds",
        f"{hits} of {due} found by code, {alarms} alarms in {figures['intact cases']} intact cases",
        "",
    )


def _copy_clean(cases: list[Path], data: Path) -> None:
    for case in cases:
        shutil.copytree(case, data / case.name)


def _copy_reversed(cases: list[Path], data: Path, placements: int) -> None:
    for number in range(placements):
        name = f"REVERSED_{number:02d}"
        _copy_with_noise(cases[number % len(cases)], data / name)
        store_reversed(Target(data / name, number))


def _copy_faulty(cases: list[Path], data: Path, placements: int) -> Due:
    due: Due = {}
    for index, (what, fault) in enumerate(FAULTS.items()):
        due[what] = {}
        for number in range(placements):
            name = f"FAULT_{index:02d}_{number:02d}"
            _copy_with_noise(cases[number % len(cases)], data / name)
            due[what][name] = fault, fault.apply(Target(data / name, number))
    return due


def _copy_with_noise(case: Path, target: Path) -> None:
    rng = np.random.default_rng(list(target.name.encode()))
    target.mkdir()
    for part in MODALITIES:
        array = voxels(case / f"{case.name}_{part}.nii.gz")
        noise = rng.integers(0, 3, array.shape, array.dtype)
        file = target / f"{target.name}_{part}.nii.gz"
        shutil.copyfile(case / f"{case.name}_{part}.nii.gz", file)
        rewrite(file, np.where(array, array + noise, 0).astype(array.dtype))
    labels = target / f"{target.name}_seg.nii.gz"
    shutil.copyfile(case / f"{case.name}_seg.nii.gz", labels)
    array = voxels(labels)
    places = np.flatnonzero(array == 2)
    array.flat[rng.choice(places, 3, replace=False)] = 1
    rewrite(labels, array)


def _judge(
    due: Due,
    found: dict[str, list[Finding]],
    clean: int,
    shape: tuple[int, int, int],
) -> dict[str, Any]:
    hits = {
        what: sum(_is_found(found[case], *expected) for case, expected in cases.items())
        for what, cases in due.items()
    }
    faulty = {case for cases in due.values() for case in cases}
    alarms = sorted(f"{f.case}: {f.code}" for case in set(found) - faulty for f in found[case])
    return {
        "holds": all(hits[what] == len(cases) for what, cases in due.items()) and not alarms,
        "figures": {
            "shape": str(shape),
            "found": {what: f"{hits[what]} of {len(cases)}" for what, cases in due.items()},
            "intact cases": clean,
            "findings in intact cases": alarms,
            "further findings in faulty cases": _further(due, found),
        },
    }


def _further(due: Due, found: dict[str, list[Finding]]) -> dict[str, int]:
    """Findings of other codes than that of the fault."""
    return Counter(
        f"{what}: {finding.code}"
        for what, cases in due.items()
        for case, (fault, _) in cases.items()
        for finding in found[case]
        if finding.code != fault.code
    )


def _is_found(findings: list[Finding], fault: Fault, files: list[Path]) -> bool:
    return any(finding.code == fault.code and finding.file in files for finding in findings)
