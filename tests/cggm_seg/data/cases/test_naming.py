"""Naming schemes and layouts of the field, each as a set of files."""

import json
import logging

import numpy as np
import pytest

from cggm.errors import DataError
from cggm_seg.data.cases import MODALITIES, find_cases, survey_cases
from cggm_seg.data.cases.search import _say_once
from cggm_seg.data.findings import Code
from tests.cggm_seg.nifti import write_volume

# Files of one case in each scheme, in the order flair, t1ce, t1, t2, seg; label scheme by name.
SCHEMES = {
    "BraTS 2021": ("{}_flair.nii.gz", "{}_t1ce.nii.gz", "{}_t1.nii.gz", "{}_t2.nii.gz",
                   "{}_seg.nii.gz", "brats2021"),
    "BraTS 2023": ("{}-t2f.nii.gz", "{}-t1c.nii.gz", "{}-t1n.nii.gz", "{}-t2w.nii.gz",
                   "{}-seg.nii.gz", "brats2023"),
    "UPENN-GBM": ("{}_FLAIR.nii.gz", "{}_T1GD.nii.gz", "{}_T1.nii.gz", "{}_T2.nii.gz",
                  "{}_segm.nii.gz", "brats2021"),
    "UCSF-PDGM": ("{}_FLAIR.nii.gz", "{}_T1c.nii.gz", "{}_T1.nii.gz", "{}_T2.nii.gz",
                  "{}_tumor_segmentation.nii.gz", "brats2021"),
    "UCSD-PTGBM": ("{}_FLAIR.nii.gz", "{}_T1post.nii.gz", "{}_T1pre.nii.gz", "{}_T2.nii.gz",
                   "{}_BraTS_tumor_seg.nii.gz", "brats2021"),
    "TCGA": ("{}_flair.nii.gz", "{}_t1Gd.nii.gz", "{}_t1.nii.gz", "{}_t2.nii.gz",
             "{}_GlistrBoost_ManuallyCorrected.nii.gz", "brats2021"),
    "BIDS": ("{}_FLAIR.nii.gz", "{}_ce-gadolinium_T1w.nii.gz", "{}_T1w.nii.gz", "{}_T2w.nii.gz",
             "{}_label.nii.gz", "brats2021"),
    "capitals": ("{}-t2F.NII.GZ", "{}-T1C.NII.GZ", "{}-t1N.NII.GZ", "{}-t2W.NII.GZ",
                 "{}-SEG.NII.GZ", "brats2023"),
}  # fmt: skip
LAYOUTS = {"flat": "", "folder": "{}/", "deep": "release/training/{}/scans/"}
IDS = ("case-001", "case-002")
PARTS = (*MODALITIES, "seg")


def write_names(folder, names, ids=IDS, layout="{}/"):
    """Makes empty files; part to file of the last case."""
    for case_id in ids:
        parts = zip(PARTS, names, strict=False)  # without a label map, maybe
        files = {p: folder / (layout + n).format(case_id, case_id) for p, n in parts}
        for file in files.values():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return files


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_and_layouts_of_the_field(tmp_path, scheme, layout):
    *names, labels = SCHEMES[scheme]
    files = write_names(tmp_path, names, layout=LAYOUTS[layout])
    cases, errors = find_cases(tmp_path, labelled=True)
    assert errors == []
    assert [case.id for case in cases] == list(IDS)
    assert {**cases[-1].images, "seg": cases[-1].label} == files
    assert [case.labels.name for case in cases] == [labels] * 2
    assert (survey_cases(tmp_path).notes == []) == scheme.startswith("BraTS ")


def test_modality_alone_takes_the_name_of_its_folder_and_of_the_patient_where_it_must(tmp_path):
    names = ("FLAIR.nii.gz", "CT1.nii.gz", "T1.nii.gz", "T2.nii.gz", "seg.nii.gz")
    for folder in ("p1/week-000", "p1/week-012-1", "p2/week-000", "p3", "p4/a", "p5/a"):
        write_names(tmp_path, names, [folder])
    cases, errors = find_cases(tmp_path, labelled=True)
    assert errors == []
    assert [c.id for c in cases] == [
        "p1_week-000", "p1_week-012-1", "p2_week-000", "p3", "p4_a", "p5_a"
    ]  # fmt: skip
    assert [c.patient for c in cases] == ["p1", "p1", "p2", "p3", "p4", "p5"]
    [case], _ = find_cases(tmp_path / "p3", labelled=False)
    assert case.id == "p3"


def test_modality_alone_takes_as_many_folders_as_tell_the_cases_apart(tmp_path):
    names = ("flair.nii", "t1gd.nii", "t1.nii", "t2.nii", "seg.nii")
    for folder in ("s1/1/anat", "s1/2/anat", "s2/1/anat", "s3/20010203/mri"):
        write_names(tmp_path, names, [folder])
    cases, errors = find_cases(tmp_path, labelled=True)
    assert errors == []
    assert {case.id: case.patient for case in cases} == {
        "s1_1_anat": "s1",
        "s1_2_anat": "s1",
        "s2_1_anat": "s2",
        "s3_20010203_mri": "s3",
    }


DATASET = {
    "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
    "labels": {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    },
}


def write_nnunet(folder, dataset):
    for case_id in ("BraTS_01", "BraTS_02"):
        for channel in range(4):
            file = folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (folder / "labelsTr").mkdir(exist_ok=True)
        (folder / "labelsTr" / f"{case_id}.nii.gz").touch()
    if dataset:
        (folder / "dataset.json").write_text(json.dumps(dataset))


def test_channels_of_nnunet_are_what_its_dataset_json_says(tmp_path):
    write_nnunet(tmp_path, DATASET)
    cases, errors = find_cases(tmp_path, labelled=True)
    assert errors == []
    [first, _] = cases
    assert {name: file.name for name, file in first.images.items()} == {
        "flair": "BraTS_01_0003.nii.gz",
        "t1ce": "BraTS_01_0001.nii.gz",
        "t1": "BraTS_01_0000.nii.gz",
        "t2": "BraTS_01_0002.nii.gz",
    }
    assert first.label == tmp_path / "labelsTr" / "BraTS_01.nii.gz"
    assert dict(first.labels.classes) == {0: 0, 1: 2, 2: 1, 3: 3}
    assert len(find_cases(tmp_path / "imagesTr", labelled=False)[0]) == 2


@pytest.mark.parametrize(
    "dataset",
    [
        None,
        {"modality": "MRI", "labels": ["ED"]},
        {"channel_names": ["T1", "T1ce"], "modality": 3},
        {"channel_names": {"T1": 0, "\u00b2": "T1ce"}},
    ],
)
def test_channels_that_no_dataset_json_tells_are_refused_by_name(tmp_path, dataset):
    write_nnunet(tmp_path, dataset)
    with pytest.raises(DataError, match=r"BraTS_01_0000\.nii\.gz.* up to 6 levels deep"):
        find_cases(tmp_path, labelled=False, allow_missing=True)
    write_names(tmp_path, SCHEMES["BraTS 2021"][:5])
    findings = survey_cases(tmp_path).findings
    assert {finding.code for finding in findings} == {Code.UNRECOGNIZED}
    [images] = [f for f in findings if f.file.parent.name == "imagesTr"]
    assert "BraTS_02_0003.nii.gz" in images.what
    assert "dataset.json" in images.fix


def test_label_map_of_another_name_in_the_folder_of_a_case_is_its_own(tmp_path):
    names = SCHEMES["BraTS 2021"][:4]
    for case_id in ("BraTS20_Training_355", "BraTS20_Training_356"):
        write_names(tmp_path, names, [case_id])
    label = tmp_path / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii"
    label.touch()
    [case], [error] = find_cases(tmp_path, labelled=True)
    assert (case.id, case.label) == ("BraTS20_Training_355", label)
    assert error.case == "BraTS20_Training_356"
    assert f"{label.name} is taken for the seg of BraTS20_Training_355." in (
        survey_cases(tmp_path).notes
    )


def test_label_map_of_another_case_in_a_flat_folder_is_not_taken(tmp_path):
    write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a"], layout="")
    (tmp_path / "b_seg.nii.gz").touch()
    cases, errors = find_cases(tmp_path, labelled=True)
    assert cases == []
    assert [error.case for error in errors] == ["a", "b"]


def test_a_name_to_the_letter_outranks_one_that_nearly_fits(tmp_path):
    files = write_names(tmp_path, SCHEMES["BraTS 2021"][:5], ["a"])
    other = files["t1"].with_name("a_T1w.nii.gz")
    other.touch()
    [case], errors = find_cases(tmp_path, labelled=True)
    assert (case.images["t1"], errors) == (files["t1"], [])
    [finding] = survey_cases(tmp_path).findings
    assert (finding.code, finding.file, finding.is_error) == (Code.UNRECOGNIZED, other, False)


def test_two_names_that_nearly_fit_are_ambiguous(tmp_path):
    write_names(tmp_path, SCHEMES["UPENN-GBM"][:5], ["a"])
    (tmp_path / "a" / "a_T1post.nii.gz").touch()
    cases, [error] = find_cases(tmp_path, labelled=True)
    assert cases == []
    assert (error.code, error.file.name) == (Code.AMBIGUOUS, "a_T1post.nii.gz")


@pytest.mark.parametrize(
    "name",
    ["a_t1xyz.nii.gz", "contrast.nii.gz", "a_0001.nii.gz", "a_t1ce_brain.nii.gz", "a_t1ce.mha"],
)
def test_near_miss_is_refused_for_inference_instead_of_zeros(tmp_path, name):
    files = write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a", "b"])
    (tmp_path / "a" / "a_t1ce.nii.gz").rename(tmp_path / "a" / name)
    files["t1ce"].unlink()
    [case], [error] = find_cases(tmp_path, labelled=False, allow_missing=True)
    assert (case.id, tuple(case.images)) == ("b", ("flair", "t1", "t2"))
    assert (error.case, error.code) == ("a", Code.MISSING)
    assert name in error.what
    assert "Rename it to a_t1ce.nii.gz" in error.fix
    kept = find_cases(tmp_path, labelled=False, allow_missing=True, modalities=("flair", "t2"))
    assert [case.id for case in kept[0]] == ["a", "b"]


def test_other_sequences_and_masks_are_no_near_miss(tmp_path):
    write_names(tmp_path, SCHEMES["UCSF-PDGM"][:4], ["a"])
    (tmp_path / "a" / "a_T1c.nii.gz").unlink()
    for word in ("ADC", "DWI", "brain_mask"):
        (tmp_path / "a" / f"a_{word}.nii.gz").touch()
    [case], errors = find_cases(tmp_path, labelled=False, allow_missing=True)
    assert (tuple(case.images), errors) == (("flair", "t1", "t2"), [])


def test_link_that_leads_nowhere_is_a_file_that_is_missing(tmp_path):
    files = write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a"])
    files["t2"].unlink()
    files["t2"].symlink_to(tmp_path / "annex" / "x")
    [case], errors = find_cases(tmp_path, labelled=False, allow_missing=True)
    assert (case.images["t2"], errors) == (files["t2"], [])


def test_other_formats_are_named_with_what_to_do(tmp_path):
    write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a"])
    (tmp_path / "a" / "a_seg.nrrd").touch()
    [finding] = survey_cases(tmp_path).findings
    assert (finding.code, finding.case) == (Code.UNRECOGNIZED, "a")
    assert "Convert" in finding.fix


def test_what_was_taken_and_what_is_left_over_is_said_once(tmp_path, caplog):
    _say_once.cache_clear()
    write_names(tmp_path, SCHEMES["UCSF-PDGM"][:5])
    (tmp_path / IDS[0] / "scan.nii.gz").touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            find_cases(tmp_path, labelled=True)
    said = [record.getMessage() for record in caplog.records]
    assert "2 files named *_T1c.nii.gz are taken for t1ce." in said
    assert sum("scan.nii.gz" in text for text in said) == 1
    assert len(said) == 6


def test_hidden_folders_and_what_macos_packs_are_passed_over(tmp_path):
    names = SCHEMES["BraTS 2021"][:5]
    write_names(tmp_path, names, ["a"])
    write_names(tmp_path / "__MACOSX", names, ["b"])
    write_names(tmp_path / ".trash", names, ["c"])
    assert [case.id for case in find_cases(tmp_path, labelled=True)[0]] == ["a"]


def write_labels_of(folder, case_id, values):
    for part in ("t2f", "t1c", "t1n", "t2w"):
        file = folder / case_id / f"{case_id}-{part}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    array = np.zeros((8, 8, 8), np.uint8)
    array[0, 0, : len(values)] = values
    write_volume(folder / case_id / f"{case_id}-seg.nii.gz", array)


def test_pediatric_labels_are_told_by_the_first_case_with_edema(tmp_path):
    write_labels_of(tmp_path, "BraTS-PED-00001-000", [1, 2, 3])
    cases, _ = find_cases(tmp_path, labelled=True)
    assert {scheme.name for scheme in cases[0].labels.rivals} == {"brats-ped", "brats2023"}
    write_labels_of(tmp_path, "BraTS-PED-00002-000", [1, 4])
    cases, _ = find_cases(tmp_path, labelled=True)
    assert [case.labels.name for case in cases] == ["brats-ped"] * 2
    [case, _], _ = find_cases(tmp_path, labelled=False)
    assert case.labels.name == "brats-ped"


def test_search_says_where_it_ended(tmp_path):
    names = SCHEMES["BraTS 2021"][:5]
    write_names(tmp_path / "1/2/3/4/5", names, ["sixth"])
    write_names(tmp_path / "1/2/3/4/5/6", names, ["seventh"])
    cases, _ = find_cases(tmp_path, labelled=True)
    assert [case.id for case in cases] == ["sixth"]
    [note] = survey_cases(tmp_path).notes
    assert note == f"Folders were searched 6 levels deep, without {tmp_path}/1/2/3/4/5/6/seventh."


@pytest.mark.parametrize(
    "name", ["ce_T1", "gd_T1w", "acq-post_T1w", "contrast_t1", "T1_post_agent"]
)
def test_a_t1_that_may_be_after_contrast_agent_is_not_the_t1_of_a_case(tmp_path, name):
    write_names(tmp_path, ["{}_flair.nii.gz", "{}_t2.nii.gz", "{}_seg.nii.gz"], ["a"])
    (tmp_path / "a" / f"a_{name}.nii.gz").touch()
    for labelled in (True, False):
        cases, [error] = find_cases(tmp_path, labelled=labelled, allow_missing=True)
        assert cases == []
        assert f"found a_{name}.nii.gz" in str(error)


def test_bids_has_a_run_between_agent_and_image(tmp_path):
    names = ["{}_FLAIR.nii.gz", "{}_ce-gd_run-1_T1w.nii.gz", "{}_run-1_T1w.nii.gz",
             "{}_T2w.nii.gz", "{}_seg.nii.gz"]  # fmt: skip
    files = write_names(tmp_path, names, ["sub-1"])
    [case], errors = find_cases(tmp_path, labelled=True)
    assert errors == []
    assert {**case.images, "seg": case.label} == files


@pytest.mark.parametrize(
    "name", ["a_brain_segmentation", "brain_seg", "a_tissue_seg", "aseg_label"]
)
def test_a_label_map_of_something_else_is_not_that_of_the_tumor(tmp_path, name):
    write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a"])
    (tmp_path / "a" / f"{name}.nii.gz").touch()
    cases, [error] = find_cases(tmp_path, labelled=True)
    assert cases == []
    assert "a_seg.nii.gz: Expected the label map of this case, but there is no such" in str(error)
    [case], _ = find_cases(tmp_path, labelled=False)
    assert set(case.images) == set(MODALITIES)


def test_the_label_map_of_the_brain_is_no_second_one(tmp_path):
    files = write_names(tmp_path, SCHEMES["UCSF-PDGM"][:5], ["a"])
    (tmp_path / "a" / "a_brain_segmentation.nii.gz").touch()
    [case], errors = find_cases(tmp_path, labelled=True)
    assert (case.label, errors) == (files["seg"], [])


def test_mask_that_may_be_the_label_map_is_named(tmp_path):
    write_names(tmp_path, SCHEMES["BraTS 2021"][:4], ["a"])
    (tmp_path / "a" / "a_mask.nii.gz").touch()
    _, [error] = find_cases(tmp_path, labelled=True)
    assert "found a_mask.nii.gz" in str(error)


def test_one_folder_for_each_image_is_one_case(tmp_path):
    images = ("0_FLAIR/NIFTI/FLAIR", "2_T1GD/NIFTI/T1GD", "1_T1/NIFTI/T1", "3_T2/NIFTI/T2")
    files = write_names(tmp_path, [f"{name}.nii.gz" for name in images], ["EGD-1", "EGD-2"])
    for folder in (tmp_path, tmp_path / "EGD-2"):
        cases, errors = find_cases(folder, labelled=False, allow_missing=True)
        assert errors == []
        assert cases[-1].id == "EGD-2"
        assert cases[-1].images == files


def test_capital_letters_of_an_identifier_do_not_part_a_case(tmp_path):
    for name in ("p1_flair", "p1_t1ce", "P1_t1", "P1_t2", "P1_seg"):
        (tmp_path / f"{name}.nii.gz").touch()
    [case], errors = find_cases(tmp_path, labelled=True)
    assert (case.id, list(case.images), errors) == ("P1", list(MODALITIES), [])


@pytest.mark.parametrize("name", ["a_t1ce.gz", "a_t1ce.nii.gz.crdownload", "contrast/a.nii.gz"])
def test_a_download_or_a_bare_name_may_be_the_image_that_a_case_lacks(tmp_path, name):
    write_names(tmp_path, ["{}_flair.nii.gz", "{}_t1.nii.gz", "{}_t2.nii.gz"], ["a"])
    file = tmp_path / "a" / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    cases, [error] = find_cases(tmp_path, labelled=False, allow_missing=True)
    assert cases == []
    assert f"found {file.name}" in str(error)


def test_folders_of_sites_and_grades_are_no_patients(tmp_path):
    names = ("flair.nii", "t1ce.nii", "t1.nii", "t2.nii", "seg.nii")
    write_names(tmp_path, names, ["HGG/001", "HGG/002", "LGG/001", "site 2/001"])
    cases, _ = find_cases(tmp_path, labelled=True)
    assert len({case.patient for case in cases}) == 4
