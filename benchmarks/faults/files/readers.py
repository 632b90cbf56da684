"""A simulated case to damage, and the readers of NIfTI files that are to notice."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

from cggm.errors import DataError
from cggm_seg.data.cases import Case, find_cases
from cggm_seg.data.nifti import read_volume
from cggm_seg.simulation.cohort import simulate_cohort

Reader = Callable[[Path], object]

# It tells of every repair of a header, thousands of times here.
logging.getLogger("nibabel").setLevel(logging.CRITICAL)

CASE_ID = "DEMO_00000"
PEERS = ("nibabel", "MONAI")


def simulated_case(folder: Path, shape: tuple[int, int, int]) -> Case:
    simulate_cohort(folder, cases=1, shape=shape, progress=False)
    return find_cases(folder, labelled=True)[0][0]


def contents(case: Case) -> dict[str, bytes]:
    """The five files of a case, by name."""
    assert case.label is not None
    return {file.name: file.read_bytes() for file in (*case.images.values(), case.label)}


def ours(file: Path) -> object:
    return read_volume(file, CASE_ID)


def nibabel(file: Path) -> object:
    image: Any = nib.load(file)
    return image.get_fdata()


def monai() -> Reader:
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True)
    return lambda file: load(file)


def readers(*, quick: bool) -> Mapping[str, Reader]:
    """Ours and the peers'; MONAI takes seconds to import, hence not when quick."""
    return {"ours": ours, "nibabel": nibabel} | ({} if quick else {"MONAI": monai()})


def error_of(read: Reader, file: Path) -> Exception | None:
    try:
        read(file)
    except Exception as error:
        return error
    return None


def is_named(error: Exception | None, file: Path) -> bool:
    """Whether an error is ours and says which case and file."""
    return isinstance(error, DataError) and (error.case, error.file) == (CASE_ID, file)
