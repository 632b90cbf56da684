import subprocess
import sys

import pytest

from cggm.errors import DataError
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.data.labels import BRATS2021, BRATS2023
from tests.cggm_seg.nifti import case_file, write_case

TINY = (10, 9, 8)


def test_folder_per_case_is_found_in_order(tmp_path):
    for case_id in ("BraTS2021_00002", "BraTS2021_00000"):
        write_case(tmp_path, case_id, shape=TINY)

    cases, errors = find_cases(tmp_path, labelled=True)

    assert errors == []
    assert [case.id for case in cases] == ["BraTS2021_00000", "BraTS2021_00002"]
    assert tuple(cases[0].images) == MODALITIES
    assert cases[0].images["t1ce"] == case_file(tmp_path, "BraTS2021_00000", "t1ce")
    assert cases[0].label == case_file(tmp_path, "BraTS2021_00000", "seg")
    assert cases[0].labels is BRATS2021


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("layout", ["flat", "folder"])
def test_names_of_2023_are_found(tmp_path, layout, suffix):
    case_id = "BraTS-GLI-00001-000"
    write_case(tmp_path, case_id, shape=TINY, naming="2023", layout=layout, suffix=suffix)

    [case], _ = find_cases(tmp_path, labelled=True)

    assert case.id == case_id
    assert case.labels is BRATS2023
    assert case.images["flair"] == case_file(tmp_path, case_id, "flair", "2023", layout, suffix)


def test_cases_one_level_deeper_are_found(tmp_path):
    write_case(tmp_path / "train", "a", shape=TINY)
    write_case(tmp_path / "val", "b", shape=TINY)
    cases, _ = find_cases(tmp_path, labelled=True)
    assert [case.id for case in cases] == ["a", "b"]


def test_label_is_optional_and_ignored_without_labelled(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    write_case(tmp_path, "b", shape=TINY, label=False)
    cases, errors = find_cases(tmp_path, labelled=False)
    assert [case.label for case in cases] == [None, None]
    assert errors == []


@pytest.mark.parametrize("naming", ["2021", "2023"])
@pytest.mark.parametrize("part", ["t1ce", "seg"])
def test_missing_file_is_named_and_other_cases_survive(tmp_path, naming, part):
    for case_id in ("a", "b"):
        write_case(tmp_path, case_id, shape=TINY, naming=naming)
    missing = case_file(tmp_path, "a", part, naming)
    missing.unlink()

    cases, [error] = find_cases(tmp_path, labelled=True)

    assert [case.id for case in cases] == ["b"]
    assert error.case == "a"
    assert error.file == missing


def test_allowed_missing_modality_is_left_out(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    case_file(tmp_path, "a", "flair").unlink()
    [case], errors = find_cases(tmp_path, labelled=True, allow_missing=True)
    assert tuple(case.images) == ("t1ce", "t1", "t2")
    assert errors == []


def test_label_alone_is_no_case_without_labelled(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    for modality in MODALITIES:
        case_file(tmp_path, "a", modality).unlink()
    assert find_cases(tmp_path, labelled=False, allow_missing=True)[0] == []
    assert len(find_cases(tmp_path, labelled=True, allow_missing=True)[0]) == 1


def test_nii_beside_nii_gz_is_ambiguous(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    write_case(tmp_path, "a", shape=TINY, suffix=".nii")
    cases, [error] = find_cases(tmp_path, labelled=True)
    assert cases == []
    assert "one file for each image" in str(error)


def test_one_case_in_two_schemes_is_ambiguous(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    write_case(tmp_path, "a", shape=TINY, naming="2023", label=False)
    cases, [error] = find_cases(tmp_path, labelled=False)
    assert cases == []
    assert error.case == "a"


def test_hidden_and_other_files_are_ignored(tmp_path):
    write_case(tmp_path, "a", shape=TINY)
    (tmp_path / "a" / "._a_t1.nii.gz").write_bytes(b"resource fork")
    (tmp_path / "a" / "a_t3.nii.gz").write_bytes(b"")
    cases, errors = find_cases(tmp_path, labelled=True)
    assert [case.id for case in cases] == ["a"]
    assert errors == []


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*cannot be read"):
        find_cases(tmp_path / "nowhere", labelled=True)


def test_file_instead_of_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be read"):
        find_cases(tmp_path / "file", labelled=True)


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found no file"):
        find_cases(tmp_path, labelled=True)


def test_folder_without_cases_is_an_error(tmp_path):
    (tmp_path / "BraTS2021.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"found 1 other files.*_flair\.nii\.gz"):
        find_cases(tmp_path, labelled=True)


def test_finding_cases_does_not_load_torch():
    code = (
        "import cggm_seg.data.cases, cggm_seg.data.cache.build, sys; print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
