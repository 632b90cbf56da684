"""Names of files and values of labels as cohorts have them: each read as what it is, or refused.

Each image of a case holds another number, so that one which is taken for another is seen. Label
maps of the five schemes come under names that tell the scheme or do not.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np

from cggm.errors import DataError
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.data.labels import SCHEMES, LabelScheme
from cggm_seg.data.volumes import read_labels

logging.getLogger("cggm_seg.data.cases").setLevel(logging.CRITICAL)  # it tells of each guess
_VALUES = {name: number for number, name in enumerate(MODALITIES, 1)}
# Kind of naming to the file names of flair, t1ce, t1, t2 and of what else lies there.
_NAMES: dict[str, tuple[str, ...]] = {
    "2021": ("A_flair", "A_t1ce", "A_t1", "A_t2"),
    "2023": ("A-t2f", "A-t1c", "A-t1n", "A-t2w"),
    "capitals": ("A_FLAIR", "A_T1CE", "A_T1", "A_T2"),
    "words": ("A_FLAIR", "A_T1_post_contrast", "A_T1_pre", "A_T2"),
    "contrast in the middle": ("A_flair", "A_t1gd", "A_t1w", "A_t2w"),
    "BIDS": ("sub-A_FLAIR", "sub-A_ce-gadolinium_T1w", "sub-A_T1w", "sub-A_T2w"),
    "modality alone": ("flair", "t1ce", "t1", "t2"),
    "brain mask beside": ("A_flair", "A_t1ce", "A_t1", "A_t2", "A_brain_mask"),
    "T1 after contrast as T1": ("A_flair", "A_gd_t1w", "A_t1", "A_t2"),
    "two of one image": ("A_flair", "A_t1ce", "A_t1", "A_t2", "A_t2w"),
    "T1 lacks, two after contrast": ("A_flair", "A_t1ce", "A_t1_post", "A_t2"),
}
# Case name, scheme by which it was labelled.
_LABELS = {
    "2021, 2021's name": ("BraTS2021_00001", "2021", "brats2021"),
    "2023, 2023's name": ("BraTS-GLI-00001-000", "2023", "brats2023"),
    "pediatric, its name": ("BraTS-PED-00001-000", "2023", "brats-ped"),
    "2013, 2021's name": ("BraTS2021_00002", "2021", "brats2013"),
    "2023, 2021's name": ("BraTS2021_00003", "2021", "brats2023"),
    "2024, 2023's name": ("BraTS-GLI-00002-000", "2023", "brats2024"),
}


def measure(quick: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        names = {what: _read_names(Path(name) / what, files) for what, files in _NAMES.items()}
        labels, peer = {}, {}
        for what, (case, naming, scheme) in _LABELS.items():
            file = _write_labels(Path(name) / what, case, naming, SCHEMES[scheme])
            labels[what] = _read_scheme(Path(name) / what, file, SCHEMES[scheme])
            if not quick:
                peer[what] = _monai(file, SCHEMES[scheme])
    outcomes = [*names.values(), *labels.values()]
    return {
        "bar": "each read as what it is, or refused; none taken for another",
        "holds": "wrong" not in outcomes and {"right", "refused"} <= {*outcomes},
        "figures": {"ours": {"names": names, "labels": labels}, "MONAI": {"labels": peer}},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours = figures["ours"]
    kinds = {what: [*found.values()] for what, found in ours.items()}
    told = [
        f"{what}: {found.count('right')} right, {found.count('refused')} refused, "
        f"{found.count('wrong')} wrong"
        for what, found in kinds.items()
    ]
    wrong = [*figures["MONAI"]["labels"].values()].count("wrong")
    return (
        f"{len(kinds['names'])} ways to name files, {len(kinds['labels'])} to label",
        "; ".join(told),
        f"labels: MONAI's transform, made for BraTS 2018, {wrong} wrong without a word",
    )


def _read_names(folder: Path, files: tuple[str, ...]) -> str:
    case = folder / "A"
    case.mkdir(parents=True)
    values = [*_VALUES.values(), *range(9, 9 + len(files))]
    for name, value in zip(files, values, strict=False):
        _write(case / f"{name}.nii.gz", np.full((4, 4, 4), value, np.int16))
    try:
        cases, errors = find_cases(folder, labelled=False)
    except DataError:
        return "refused"
    if errors or len(cases) != 1:
        return "refused"
    found = {name: int(_voxels(file)[0, 0, 0]) for name, file in cases[0].images.items()}
    return "right" if found == _VALUES else "wrong"


def _write_labels(folder: Path, case: str, naming: str, scheme: LabelScheme) -> Path:
    words = {"2021": ("_flair", "_t1ce", "_t1", "_t2", "_seg")}
    words["2023"] = ("-t2f", "-t1c", "-t1n", "-t2w", "-seg")
    (folder / case).mkdir(parents=True)
    for word in words[naming]:
        file = folder / case / f"{case}{word}.nii.gz"
        _write(file, np.zeros((4, 4, 4), np.int16))
    values = np.resize(np.array(scheme.values, np.uint8), (4, 4, 4))
    _write(file, values)
    return file


def _read_scheme(folder: Path, file: Path, scheme: LabelScheme) -> str:
    try:
        cases, errors = find_cases(folder, labelled=True)
        if errors or not cases:
            return "refused"
        classes = read_labels(file, cases[0].id, cases[0].labels)[0]
    except DataError:
        return "refused"
    return "right" if np.array_equal(classes, read_labels(file, "A", scheme)[0]) else "wrong"


def _monai(file: Path, scheme: LabelScheme) -> str:
    """Whether the three regions are those of the scheme."""
    from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses

    regions = ConvertToMultiChannelBasedOnBratsClasses()(_voxels(file))  # TC, WT, ET
    meaning = dict(scheme.classes)
    classes = np.vectorize(meaning.__getitem__)(_voxels(file))
    wanted = np.stack([np.isin(classes, (1, 3)), classes > 0, classes == 3])
    return "right" if np.array_equal(np.asarray(regions), wanted) else "wrong"


def _write(file: Path, voxels: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1])), file)


def _voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(file).dataobj)
