"""The evaluation by either rule, as a process, on label maps whose scores are known by hand."""

import json

import numpy as np
import pytest

from tests.cggm_seg.nifti import case_file, write_volume
from tests.pipelines.commands import start


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A reference of two lesions of 64 voxels, and a prediction of the first one."""
    folder = tmp_path_factory.mktemp("evaluate")
    reference, predictions = folder / "reference", folder / "predictions"
    labels = np.zeros((40, 24, 24), np.uint8)
    labels[4:8, 4:8, 4:8] = 4
    write_volume(predictions / "case.nii.gz", labels)
    labels[26:30, 12:16, 12:16] = 4
    write_volume(case_file(reference, "case", "seg"), labels)
    return "--predictions", predictions, "--reference", reference


def evaluate(*argv):
    process = start("evaluate", *argv)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("rule", "dice", "hd95"), [("brats2021", 2 / 3, None), ("brats2023", 0.5, 187)]
)
def test_each_rule_scores_by_volumes_or_by_lesions(folders, tmp_path, rule, dice, hd95):
    code, out, err = evaluate(*folders, "--rule", rule, "--output", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["rule"] == rule
    for region in ("WT", "TC", "ET"):
        assert scores["rows"]["case"][f"dice_{region}"] == pytest.approx(dice)
        assert hd95 in (None, scores["rows"]["case"][f"hd95_{region}"])
    assert f"mean Dice of WT, TC and ET: {dice:.3f}" in out


def test_unknown_rule_is_refused_with_those_that_there_are(folders):
    code, out, err = evaluate(*folders, "--rule", "brats2024")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in ("--rule", "brats2021", "brats2023", "brats2024"):
        assert word in err
