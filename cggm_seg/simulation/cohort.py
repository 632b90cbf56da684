"""Simulated cohorts in the layout of BraTS 2021, for demonstrations and comparisons.

A number measured on such a cohort says nothing about patients. They exist so that every command can
be run from end to end without data that need a license agreement.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from cggm.errors import UserError
from cggm.runs import holding, parse_json, write_atomically
from cggm_seg.data import SIMULATED_IMAGE
from cggm_seg.simulation.phantom import (
    CONTRASTS,
    LESIONS,
    NOISE,
    LesionKind,
    LesionModel,
    simulate_case,
)
from cggm_seg.simulation.template import FULL_SHAPE, load_template

_VERSION = 1  # of the generator: to be raised whenever the same seed gives other voxels
_README = """Simulated demo cohort

The lesions and the four contrasts in this folder are SIMULATED. They are no patient data, and
numbers measured on them say nothing about patients. cohort.json holds the seed and the settings of
the generator, cggm_seg.simulation.cohort.simulate_cohort, which reproduces every file from them.

The anatomy is the ICBM152 2009 nonlinear template as shipped with nilearn:

Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University. Permission to use, copy, modify, and distribute this software and its
documentation for any purpose and without fee is hereby granted, provided that the above copyright
notice appear in all copies. The authors and McGill University make no representations about the
suitability of this software for any purpose. It is provided "as is" without express or implied
warranty. The authors are not responsible for any data loss, equipment damage, property loss, or
injury to subjects or patients resulting from the use or misuse of this software package.
"""


def simulate_cohort(
    folder: Path,
    *,
    cases: int | None = None,
    seed: int = 0,
    lesions: LesionKind = "large",
    workers: int = 2,
    shape: tuple[int, int, int] | None = None,
    progress: bool = True,
    prefix: str = "DEMO",
) -> list[str]:
    """Writes `cases` simulated cases as ``<folder>/DEMO_00000/DEMO_00000_flair.nii.gz`` and so on.

    A case depends on the seed, the kind of lesions, the shape and its number alone. A complete case
    is never rewritten, so a run that was cut off, or is to be extended, goes on where it stopped.

    Args:
        folder: Created if need be; otherwise empty or a cohort of the same seed, lesions and shape.
        cases: Number of cases; 16 with large lesions or 8 with small ones where not given.
        seed: Seed of anatomy, lesions and noise, not negative.
        lesions: ``"large"``, or ``"small"``: cores of 5 to 10 voxels in radius, with a rim a third
            brighter than white matter in T1ce, see :data:`cggm_seg.simulation.phantom.LESIONS`.
        workers: Threads, each busy with one case and about 0.4 GB.
        shape: Voxels per axis of the field of view of 240 mm x 240 mm x 155 mm; all 240 x 240 x 155
            with large lesions or 120 x 120 x 78 with small ones where not given.
        progress: Whether to show a progress bar.
        prefix: What the identifiers begin with; another one for cases that are held out, so that
            none is taken for one that was trained on.

    Returns:
        The identifiers of all cases.

    Raises:
        UserError: If the folder holds anything else than this cohort, another process writes there,
            or nilearn is missing.
    """
    load_template()
    model = LESIONS[lesions]
    shape = shape or model.shape
    settings = _settings(lesions, model, seed, shape)
    _claim(folder, settings if prefix == "DEMO" else {**settings, "prefix": prefix})
    names = [f"{prefix}_{index:05d}" for index in range(model.cases if cases is None else cases)]
    missing = [index for index, name in enumerate(names) if not _is_complete(folder / name)]
    lock = holding(folder, "a simulation") if missing else nullcontext()
    with lock, ThreadPoolExecutor(max(workers, 1)) as pool:
        written = pool.map(lambda i: _write_case(folder / names[i], i, seed, shape, model), missing)
        hidden = None if progress and missing else True
        for _ in tqdm(written, "Simulating", len(missing), unit="case", disable=hidden):
            pass
    return names


def _settings(
    lesions: LesionKind, model: LesionModel, seed: int, shape: tuple[int, int, int]
) -> dict[str, object]:
    """What a case depends on besides its number."""
    settings: dict[str, object] = {
        "generator": _VERSION,
        "seed": seed,
        "shape": list(shape),
        "et_free_share": model.et_free_share,
        "noise": NOISE,
        "contrasts": model.contrasts,
    }
    # Cohorts of large lesions from before there were small ones do not name the kind.
    return settings if lesions == "large" else {**settings, "lesions": lesions}


def _claim(folder: Path, settings: dict[str, object]) -> None:
    record = folder / "cohort.json"
    if record.exists():
        _check_settings(record, settings)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"Expected {folder} to be empty or to hold a demo cohort, but found other files.",
            "Choose another folder for the demo cohort.",
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(settings, indent=2).encode())
    (folder / "README.txt").write_text(_README, "utf-8")


def _check_settings(record: Path, settings: dict[str, object]) -> None:
    try:
        found = dict(parse_json(record.read_bytes()))
    except (ValueError, TypeError):
        found = {}
    default = {"lesions": "large", "prefix": "DEMO"}
    expected, found = {**default, **settings}, {**default, **found}
    other = [key for key in expected if found.get(key) != expected[key]]
    if other:
        raise UserError(
            f"Expected {record} to describe the same demo cohort, but found another "
            f"{', '.join(other)}.",
            "Choose another folder, or delete this one to simulate the cohort anew.",
        )


def _is_complete(case: Path) -> bool:
    return all((case / f"{case.name}_{part}.nii.gz").is_file() for part in (*CONTRASTS, "seg"))


def _write_case(
    target: Path, index: int, seed: int, shape: tuple[int, int, int], model: LesionModel
) -> None:
    share = model.et_free_share
    enhancing = int((index + 1.5) * share) == int((index + 0.5) * share)
    rng = np.random.default_rng([seed, index])
    volumes = simulate_case(rng, shape, enhancing=enhancing, model=model)
    affine = _affine(shape)
    with _whole_or_nothing(target) as scratch:
        for part, volume in volumes.items():
            image = nib.Nifti1Image(volume, affine)
            image.set_sform(affine, code=2)
            image.set_qform(affine, code=0)
            image.header.set_xyzt_units("mm")
            image.header["descrip"] = SIMULATED_IMAGE + b": no patient data"
            nib.save(image, scratch / f"{target.name}_{part}.nii.gz")


def _affine(shape: tuple[int, int, int]) -> np.ndarray:
    """Index to mm in nibabel's RAS+ for LPS arrays; the matrix of BraTS at the full shape."""
    step = np.divide(FULL_SHAPE, shape)
    affine = np.diag([-step[0], -step[1], step[2], 1.0])
    affine[:3, 3] = np.array([0, 239, 0]) + np.array([-1, -1, 1]) * (step - 1) / 2
    return affine


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
