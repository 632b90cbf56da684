"""Label schemes from one command to the next: what is written is what is read."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.pipelines.commands import call, untrained_run

CASE = "BraTS-PED-00007-000"
# Values of brats-ped for background, NCR, ED and ET.
PEDIATRIC = np.array([0, 2, 4, 1], np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("model") / "run")


def write_pediatric(folder, *, edema):
    write_case(folder, CASE, shape=(32, 32, 8), naming="2023")
    file = case_file(folder, CASE, "seg", "2023")
    classes = np.asarray(nib.load(file).dataobj)
    if not edema:
        classes[classes == 2] = 0
    write_volume(file, PEDIATRIC[classes])
    return classes


def evaluate(folder, *options):
    scores = folder / "scores.json"
    given = ("--predictions", folder / "out", "--reference", folder / "data", "--output", scores)
    code = call("evaluate", *given, *options)
    return code, json.loads(scores.read_text()) if scores.exists() else None


def test_pediatric_cases_are_scored_by_their_own_labels(tmp_path, capsys):
    classes = write_pediatric(tmp_path / "data", edema=True)
    write_volume(tmp_path / "out" / f"{CASE}.nii.gz", PEDIATRIC[np.where(classes == 1, 0, classes)])
    assert call("verify", "--data", tmp_path / "data", "--workers", 1) == 0
    code, scores = evaluate(tmp_path)
    assert (code, scores["labels"]) == (0, {CASE: "brats-ped"})
    row = scores["rows"][CASE]
    sizes = [np.count_nonzero(classes == k) for k in range(4)]
    assert row["dice_ET"] == 1
    assert row["dice_TC"] == pytest.approx(2 * sizes[3] / (sizes[1] + 2 * sizes[3]))


def test_pediatric_cases_in_doubt_are_refused_by_every_command_until_somebody_says(
    tmp_path, capsys
):
    classes = write_pediatric(tmp_path / "data", edema=False)
    write_volume(tmp_path / "out" / f"{CASE}.nii.gz", PEDIATRIC[classes])
    assert call("verify", "--data", tmp_path / "data", "--workers", 1) == 2
    assert evaluate(tmp_path)[0] == 2
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "--labels: brats-ped (1 enhancing" in text
        assert "or brats2023 (1 necrosis" in text
    verify = ("verify", "--data", tmp_path / "data", "--workers", 1, "--labels")
    assert call(*verify, "brats-ped") == 0
    assert evaluate(tmp_path, "--labels", "brats-ped")[1]["rows"][CASE]["dice_TC"] == 1
    assert evaluate(tmp_path, "--labels", "brats2023")[0] == 0


def test_prediction_is_written_in_the_scheme_and_read_by_its_record(model, tmp_path, capsys):
    write_case(tmp_path / "data", "a", shape=(32, 32, 8))
    infer = ("infer", "--model", model, "--input", tmp_path / "data", "--device", "cpu", "--output")
    assert call(*infer, tmp_path / "plain") == 0
    assert call(*infer, tmp_path / "out", "--labels", "1=ET,5=ED,7=NCR") == 0
    plain, mapped = (
        np.asarray(nib.load(tmp_path / name / "a.nii.gz").dataobj) for name in ("plain", "out")
    )
    assert (mapped == np.array([0, 7, 5, 0, 1])[plain]).all()
    code, scores = evaluate(tmp_path)
    assert code == 0
    assert scores["labels"] == {"a": "brats2021"}
    (tmp_path / "out" / "a.nii.gz").unlink()
    (tmp_path / "plain" / "a.nii.gz").rename(tmp_path / "out" / "a.nii.gz")
    assert evaluate(tmp_path)[1]["rows"] == scores["rows"]


def test_near_miss_is_refused_unless_it_is_said_to_be_absent(model, tmp_path, capsys):
    write_case(tmp_path / "data", "a", shape=(32, 32, 8))
    file = case_file(tmp_path / "data", "a", "t1ce")
    file.rename(file.with_name("contrast.nii.gz"))
    infer = ("infer", "--model", model, "--input", tmp_path / "data", "--device", "cpu", "--output")
    assert call(*infer, tmp_path / "out") == 2
    assert "contrast.nii.gz" in capsys.readouterr().err
    assert call(*infer, tmp_path / "out", "--absent", "t1ce") == 0
