"""Cohorts as raw nnU-Net data sets, predictions back, simulated data sets; real files."""

import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nnunetv2", reason="needs the extra nnunet: pip install 'cggm[nnunet]'")

from cggm.errors import UserError
from cggm_nnunet import collect_predictions, convert_cohort, simulate_dataset
from cggm_nnunet.conversion import NNUNET_LABELS
from cggm_seg.data import find_cases, read_labels
from cggm_seg.evaluation import evaluate_folder
from tests.cggm_seg.nifti import case_file, write_case


def array(file):
    return np.asarray(nib.load(file).dataobj)


@pytest.mark.parametrize(
    ("naming", "layout", "suffix"), [("2021", "folder", ".nii.gz"), ("2023", "flat", ".nii")]
)
def test_a_cohort_becomes_a_data_set_and_predictions_come_back(tmp_path, naming, layout, suffix):
    data = tmp_path / "cohort"
    enhancing = 4 if naming == "2021" else 3
    names = [f"BraTS-{i:05d}" for i in range(2)]
    for seed, name in enumerate(names):
        write_case(data, name, naming=naming, layout=layout, suffix=suffix, seed=seed)
    folder, problems = convert_cohort(data, tmp_path / "raw", 137, "Tumors")
    assert (folder.name, problems) == ("Dataset137_Tumors", [])
    described = json.loads((folder / "dataset.json").read_text())
    assert described["channel_names"]["1"] == "t1ce"
    assert described["labels"]["tumor core"] == [2, 3]
    assert (described["regions_class_order"], described["numTraining"]) == ([1, 2, 3], 2)
    for name in names:
        for channel, modality in enumerate(("flair", "t1ce", "t1", "t2")):
            source = case_file(data, name, modality, naming, layout, suffix)
            copied = folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            assert np.array_equal(array(copied), array(source))
            assert np.array_equal(nib.load(copied).affine, nib.load(source).affine)
        wanted = array(case_file(data, name, "seg", naming, layout, suffix))
        found = array(folder / "labelsTr" / f"{name}.nii.gz")
        for brats, ours in ((0, 0), (1, 2), (2, 1), (enhancing, 3)):  # NCR, ED, ET
            assert np.array_equal(wanted == brats, found == ours)
    assert not (folder / "splits_final.json").exists()
    back = tmp_path / "back"
    assert collect_predictions(folder / "labelsTr", data, back) == names
    for name in names:
        reference = array(case_file(data, name, "seg", naming, layout, suffix))
        assert np.array_equal(array(back / f"{name}.nii.gz"), reference)
    assert evaluate_folder(back, data).mean_dice == 1.0


def test_a_case_that_lacks_a_modality_gets_zeros(tmp_path):
    for name in ("a", "b"):
        write_case(tmp_path / "cohort", name)
    case_file(tmp_path / "cohort", "b", "t1", "2021", "folder", ".nii.gz").unlink()
    folder, problems = convert_cohort(tmp_path / "cohort", tmp_path / "raw", 1, "Some")
    assert problems == []
    assert not array(folder / "imagesTr" / "b_0002.nii.gz").any()
    assert array(folder / "imagesTr" / "b_0003.nii.gz").any()


def test_what_comes_of_simulated_cases_says_so(tmp_path):
    write_case(tmp_path / "cohort", "a")
    (tmp_path / "cohort" / "cohort.json").write_text("{}")
    folder, _ = convert_cohort(tmp_path / "cohort", tmp_path / "raw", 1, "Some")
    assert "SIMULATED" in json.loads((folder / "dataset.json").read_text())["description"]


def test_folds_keep_the_examinations_of_a_patient_together(tmp_path):
    names = [f"BraTS-GLI-{p:05d}-{time:03d}" for p in range(6) for time in range(2)]
    for seed, name in enumerate(names):
        write_case(tmp_path / "cohort", name, naming="2023", shape=(24, 20, 12), seed=seed)
    folder, _ = convert_cohort(tmp_path / "cohort", tmp_path / "raw", 1, "Some")
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 5
    assert sorted(name for fold in folds for name in fold["val"]) == names
    for fold in folds:
        patients = [{name[:-4] for name in fold[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]
        assert sorted(fold["train"] + fold["val"]) == names


def test_predictions_of_another_data_set_are_refused(tmp_path):
    write_case(tmp_path / "cohort", "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"predictions of the cases of .*cohort, but .*empty has"):
        collect_predictions(tmp_path / "empty", tmp_path / "cohort", tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [{"number": 0}, {"number": 1000}, {"name": "../a"}, {"name": ""}, {"cases": 0}, {"seed": -1}],
)
def test_what_nnunet_would_not_find_is_refused(tmp_path, options):
    write_case(tmp_path / "cohort", "a")
    raw = tmp_path / "raw"
    if {"number", "name"} & {*options}:
        with pytest.raises(UserError, match="a number of a data set from 1 to 999 and a name of"):
            convert_cohort(tmp_path / "cohort", raw, **{"number": 1, "name": "A", **options})
    if "name" not in options:
        with pytest.raises(UserError, match=r"from 1 to 999|at least 1 case and a seed of at"):
            simulate_dataset(raw, **{"number": 1, "kind": "ct", "cases": 1, **options})
    assert not raw.exists()


def test_labels_of_the_data_set_are_nested_regions(tmp_path):
    write_case(tmp_path / "cohort", "a")
    write_case(tmp_path / "cohort", "b")
    folder, _ = convert_cohort(tmp_path / "cohort", tmp_path / "raw", 1, "Some")
    cases, _ = find_cases(tmp_path / "cohort", labelled=True)
    wanted, _ = read_labels(cases[0].label, "a", cases[0].labels)
    found, _ = read_labels(folder / "labelsTr" / "a.nii.gz", "a", NNUNET_LABELS)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "channels"), [("prostate", 2), ("ct", 2), ("brain", 3)])
def test_simulated_data_sets_are_complete_and_repeatable(tmp_path, kind, channels):
    folder = simulate_dataset(tmp_path, 7, kind, cases=2, shape=(24, 24, 16))
    again = simulate_dataset(tmp_path / "again", 7, kind, cases=2, shape=(24, 24, 16))
    files = sorted(f.relative_to(folder) for f in folder.rglob("*.nii.gz"))
    assert len(files) == 4 * (channels + 1)
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes()
    assert "SIMULATED" in json.loads((folder / "dataset.json").read_text())["description"]
    labels = array(folder / "labelsTr" / "case_000.nii.gz")
    assert {*np.unique(labels)} == {0, 1, 2}
    image = array(folder / "imagesTr" / "case_000_0000.nii.gz")
    assert len({round(float(image[labels == value].mean())) for value in (1, 2)}) == 2
    with pytest.raises(FileExistsError, match="new or an empty folder"):
        simulate_dataset(tmp_path, 7, kind, cases=2)
