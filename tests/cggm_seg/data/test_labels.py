"""Label schemes: what is read, what is refused, and with which readings."""

import nibabel as nib
import numpy as np
import pytest

from cggm.errors import UserError
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.labels import (
    BRATS2021,
    BRATS2023,
    BRATS_PED,
    SCHEMES,
    in_doubt,
    label_scheme,
    scheme_of_names,
    to_classes,
)
from cggm_seg.data.nifti import read_volume
from tests.cggm_seg.nifti import AFFINE, write_volume
from tests.quantifiers import every

NCR, ED, ET = 1, 2, 3
# Class of each label value, by scheme.
MEANINGS = {
    "brats2021": {1: NCR, 2: ED, 4: ET},
    "brats2023": {1: NCR, 2: ED, 3: ET},
    "brats-ped": {1: ET, 2: NCR, 3: NCR, 4: ED},
    "brats2013": {1: NCR, 2: ED, 3: NCR, 4: ET},
    "brats2024": {1: NCR, 2: ED, 3: ET, 4: 0},
}
WRITTEN = {
    "brats2021": [0, 1, 2, 4],
    "brats2023": [0, 1, 2, 3],
    "brats-ped": [0, 2, 4, 1],
    "brats2013": [0, 1, 2, 4],
    "brats2024": [0, 1, 2, 3],
}


def label_map(folder, values, kind=np.uint8):
    array = np.zeros((4, 4, 4), kind)
    array.ravel()[: len(values)] = values
    write_volume(folder / "seg.nii.gz", array)
    return folder / "seg.nii.gz"


def classes_of(file, scheme):
    return to_classes("case", file, read_volume(file, "case"), scheme)


@pytest.mark.parametrize("name", SCHEMES)
def test_values_become_classes_and_classes_values(tmp_path, name):
    meaning = MEANINGS[name]
    file = label_map(tmp_path, list(meaning))
    found = classes_of(file, SCHEMES[name])
    assert (found.dtype, np.bincount(found.ravel(), minlength=4).sum()) == (np.uint8, 64)
    stored = read_volume(file, "case").array
    for value, number in meaning.items():
        assert (found[stored == value] == number).all()
    assert (found[stored == 0] == 0).all()
    assert SCHEMES[name].file_values().tolist() == WRITTEN[name]


@pytest.mark.parametrize(
    "text", ["1=NCR, 2=ED ,7=et", '{"1": "NCR", "2": 2, "7": "ET"}', "1=1,2=2,7=3"]
)
def test_mapping(tmp_path, text):
    scheme = label_scheme(text)
    assert dict(scheme.classes) == {0: 0, 1: NCR, 2: ED, 7: ET}
    assert scheme.file_values().tolist() == [0, 1, 2, 7]
    assert classes_of(label_map(tmp_path, [7, 1, 2]), scheme).max() == ET


def test_name_or_nothing():
    assert label_scheme("brats-ped") is BRATS_PED
    assert label_scheme(None) is None


@pytest.mark.parametrize("text", ["brats2022", "1=XY", "1", "1=NCR,300=ET", "1=background", "{1}"])
def test_what_is_no_scheme_is_refused(text):
    with pytest.raises(UserError, match="--labels"):
        label_scheme(text)


def test_scheme_without_a_value_for_a_class_cannot_be_written():
    with pytest.raises(UserError, match="has none for ED"):
        label_scheme("1=NCR,4=ET").file_values()


# Scheme by name, labels, code, readings that are offered, readings that are not.
REFUSED = [
    (BRATS2021, [1, 2, 3], Code.OTHER_SCHEME, ["brats2023", "brats-ped", "brats2013"], ["2024"]),
    (BRATS2021, [1, 2, 3, 4], Code.OTHER_SCHEME, ["brats2013", "brats-ped", "brats2024"], []),
    (BRATS2023, [1, 2, 4], Code.OTHER_SCHEME, ["brats2021", "brats2024", "brats-ped"], []),
    (BRATS2023, [1, 2, 5], Code.UNKNOWN_LABEL, ["1=NCR"], ["brats-ped"]),
    (in_doubt(BRATS_PED, BRATS2023), [1], Code.OTHER_SCHEME, ["brats-ped", "brats2023"], ["2021"]),
]


@pytest.mark.parametrize(("scheme", "values", "code", "offered", "others"), REFUSED)
def test_doubt_is_a_refusal_with_all_readings(tmp_path, scheme, values, code, offered, others):
    with pytest.raises(Finding) as caught:
        classes_of(label_map(tmp_path, values), scheme)
    assert caught.value.code is code
    assert "--labels" in caught.value.fix
    assert every(reading in caught.value.fix for reading in offered)
    assert [reading for reading in others if reading in caught.value.fix] == []


def test_label_three_of_2013_is_never_advised_to_become_four(tmp_path):
    with pytest.raises(Finding) as caught:
        classes_of(label_map(tmp_path, [1, 2, 3, 4]), BRATS2021)
    assert "3 non-enhancing tumor, which counts as 1" in caught.value.fix
    assert "change" not in caught.value.fix


def test_nothing_but_background_is_no_doubt(tmp_path):
    assert not classes_of(label_map(tmp_path, []), in_doubt(BRATS_PED, BRATS2023)).any()


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16])
def test_scaled_labels_are_those_that_they_stand_for(tmp_path, kind):
    values = read_volume(label_map(tmp_path, [1, 2, 4]), "case").array.astype(np.float64)
    image = nib.Nifti1Image(values, AFFINE)
    image.set_data_dtype(kind)
    image.to_filename(tmp_path / "scaled.nii.gz")
    assert nib.load(tmp_path / "scaled.nii.gz").dataobj.slope != 1
    found = classes_of(tmp_path / "scaled.nii.gz", BRATS2021)
    assert np.bincount(found.ravel()).tolist() == [61, 1, 1, 1]


def test_fraction_in_a_scaled_file_names_the_scale_and_in_another_the_resampling(tmp_path):
    image = nib.Nifti1Image(np.linspace(0, 4, 64).reshape(4, 4, 4), AFFINE)
    image.set_data_dtype(np.uint8)
    image.to_filename(tmp_path / "scaled.nii.gz")
    with pytest.raises(Finding, match=r"scl_slope.*save it as uint8") as caught:
        classes_of(tmp_path / "scaled.nii.gz", BRATS2021)
    assert caught.value.code is Code.FRACTIONAL_LABEL
    with pytest.raises(Finding, match="resampled"):
        classes_of(label_map(tmp_path, [1.5], np.float32), BRATS2021)


DESCRIPTIONS = [
    ({"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
     {0: 0, 1: ED, 2: NCR, 3: ET}),
    ({"background": 0, "NCR/NET": 1, "ED": 2, "ET": 3}, {0: 0, 1: NCR, 2: ED, 3: ET}),
    ({"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}, {0: 0, 1: ED, 2: NCR, 3: ET}),
    ({"background": 0, "necrotic core": 1, "peritumoral edema": 2, "GD-enhancing tumor": 4},
     {0: 0, 1: NCR, 2: ED, 4: ET}),
    ({"NCR": 2, "ED": 3, "ET": 4}, {0: 0, 2: NCR, 3: ED, 4: ET}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "classes"), DESCRIPTIONS)
def test_labels_of_a_dataset_json(names, classes):
    assert dict(scheme_of_names(names).classes) == classes


SILENT = [{}, {"background": 0, "liver": 1}, {"background": 0, "ET": 1}]
SILENT += [{"ED": 2, "ET": value} for value in ("x", [[3]], {"a": 3}, None, 3.5, -1)]


@pytest.mark.parametrize("names", [*SILENT, {"\u00b2": "edema", "3": "ET"}])
def test_labels_of_a_dataset_json_that_say_nothing(names):
    assert scheme_of_names(names) is None


def test_labels_fit_into_a_byte():
    assert dict(label_scheme("255=NCR,2=ED,4=ET").classes)[255] == NCR
    with pytest.raises(UserError, match="values from 0 to 255"):
        label_scheme("256=NCR,2=ED,4=ET")
