"""Conversion of BraTS cohorts to raw nnU-Net data sets, and of predictions back."""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
from numpy.typing import NDArray
from tqdm import tqdm

from cggm.errors import DataError, UserError
from cggm.runs import new_folder, write_atomically, write_json
from cggm_seg.data import (
    MODALITIES,
    Case,
    Grid,
    LabelScheme,
    find_cases,
    has_simulated_cases,
    read_case,
    read_labels,
    split_cases,
    write_labels,
)

NNUNET_LABELS = LabelScheme("nnunet", ((0, 0), (1, 2), (2, 1), (3, 3)))
"""What converted label maps hold, 1 edema, 2 necrotic core and 3 enhancing tumor, so that regions
lie one within the other."""

_REGIONS = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
_FOLDS = 5


def convert_cohort(
    data: Path, raw: Path, number: int, name: str, *, labels: LabelScheme | None = None
) -> tuple[Path, list[DataError]]:
    """Write the cases of a BraTS cohort as a raw nnU-Net data set with regions.

    Any naming, layout and orientation is read. Label maps decide what a case is for: those with
    one are for training. The channel of a modality that a case lacks is zero, which
    :mod:`cggm_nnunet` takes for absent. Where patients have several examinations, folds that keep
    them together are written as ``splits_final.json``, to be copied beside the plans.

    Args:
        data: Folder of the cohort.
        raw: ``nnUNet_raw``.
        number: Of the data set, 1 to 999.
        name: Of the data set, behind its number.
        labels: What label values mean; told by names and contents where not given.

    Returns:
        The folder of the data set, and one error for each case that was left out.

    Raises:
        DataError: If the folder holds no case.
        UserError: If the data set exists, or no case is left.
    """
    cases, problems = find_cases(data, labelled=True, allow_missing=True, labels=labels)
    folder = dataset_folder(raw, number, name)
    with new_folder(folder) as draft:
        (draft / "imagesTr").mkdir()
        (draft / "labelsTr").mkdir()
        written = []
        for case in tqdm(cases, desc="cases", disable=None):
            try:
                _convert(case, draft)
                written.append(case)
            except DataError as error:
                problems.append(error)
        if not written:
            raise UserError(f"{data}: no case could be converted.", "See brats_verify.py.")
        write_json(draft / "dataset.json", _description(len(written), has_simulated_cases(data)))
        folds = _folds_by_patient(written)
        if folds:
            write_json(draft / "splits_final.json", folds)
    return folder, problems


def dataset_folder(raw: Path, number: int, name: str) -> Path:
    """The folder of a new data set in ``nnUNet_raw``, which is made.

    Args:
        raw: ``nnUNet_raw``.
        number: Of the data set.
        name: Of the data set.

    Raises:
        UserError: If nnU-Net would not find it by its number and name.
    """
    if not 1 <= number <= 999 or not re.fullmatch(r"\w[\w-]*", name):
        raise UserError(
            "Expected a number of a data set from 1 to 999 and a name of letters and digits, but "
            f"got {number} and {name!r}.",
            "Correct them.",
        )
    raw.mkdir(parents=True, exist_ok=True)
    return raw / f"Dataset{number:03d}_{name}"


def collect_predictions(predictions: Path, data: Path, output: Path) -> list[str]:
    """Write nnU-Net's predictions in the label values of the cohort, for our own evaluation.

    Args:
        predictions: nnU-Net's output, ``CASE.nii.gz``, of a converted data set.
        data: Folder of the cohort, labelled or not.
        output: New folder.

    Returns:
        The cases.

    Raises:
        DataError: If the cohort holds no case, or a prediction cannot be read.
        UserError: If no case has a prediction, or the output exists.
    """
    cases, _ = find_cases(data, labelled=False, allow_missing=True)
    files = [(case, predictions / f"{case.id}.nii.gz") for case in cases]
    found = [(case, file) for case, file in files if file.is_file()]
    if not found:
        raise UserError(
            f"Expected predictions of the cases of {data}, but {predictions} has none.",
            "Give the folder that nnUNetv2_predict wrote.",
        )
    with new_folder(output) as draft:
        for case, file in found:
            classes, grid = read_labels(file, case.id, NNUNET_LABELS)
            write_labels(draft / file.name, classes, grid, case.labels)
    return [case.id for case, _ in found]


def _convert(case: Case, folder: Path) -> None:
    volumes = read_case(case)
    assert volumes.label is not None
    for channel, image in enumerate(volumes.channels(MODALITIES)):
        _write_image(folder / "imagesTr" / f"{case.id}_{channel:04d}.nii.gz", image, volumes.grid)
    write_labels(
        folder / "labelsTr" / f"{case.id}.nii.gz", volumes.label, volumes.grid, NNUNET_LABELS
    )


def _write_image(file: Path, image: NDArray, grid: Grid) -> None:
    header = grid.header.copy()
    header.set_data_dtype(image.dtype.newbyteorder("="))
    header.set_slope_inter(1, 0)
    data: bytes = nib.Nifti1Image(grid.from_frame(image), None, header).to_bytes()
    write_atomically(file, gzip.compress(data, 1, mtime=0))


def _description(cases: int, simulated: bool) -> dict[str, object]:
    return {
        **({"description": "SIMULATED: no patient data"} if simulated else {}),
        "channel_names": {str(channel): name for channel, name in enumerate(MODALITIES)},
        "labels": {"background": 0, **_REGIONS},
        "regions_class_order": [1, 2, 3],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def _folds_by_patient(cases: Sequence[Case]) -> list[dict[str, list[str]]]:
    """nnU-Net's five folds with the examinations of a patient together; none where not needed."""
    patients = {case.id: case.patient for case in cases}
    if len(set(patients.values())) in (len(patients), *range(_FOLDS)):
        return []
    folds = [
        split_cases([*patients], 0.2, 0, patients=patients, fold=(number, _FOLDS))
        for number in range(1, _FOLDS + 1)
    ]
    return [{"train": [*fold.training], "val": [*fold.validation]} for fold in folds]
