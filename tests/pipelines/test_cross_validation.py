"""Cross-validation with one command: every fold, its patients, the summary, and going on."""

import json
import shutil

import pytest

from cggm.runs.cli import run
from pipelines import brats_train
from tests.cggm_seg.nifti import write_case

TINY = """
max_epochs: 1
batch_size: 4
workers: 0
subsets: false
curves: false
report: false
network: {encoder_name: tu-lcnet_050, decoder_channels: 8, low_level_channels: 8}
slices: {size: 32, per_case: 2, augment: false}
"""


@pytest.fixture(scope="module")
def cross_validation(tmp_path_factory):
    """Three folds of five patients, one of whom was examined twice."""
    folder = tmp_path_factory.mktemp("folds")
    names = [*(f"P{k}-00{k}-000" for k in range(5)), "P0-000-001"]
    for seed, name in enumerate(names):
        write_case(folder / "data", name, shape=(40, 36, 16), seed=seed, naming="2023")
    (folder / "tiny.yaml").write_text(TINY)
    assert train(folder, "--output", folder / "cv", "--folds", 3) == 0
    return folder


def train(folder, *options):
    given = ("--data", folder / "data", "--config", folder / "tiny.yaml", "--method", "joint")
    return run(brats_train.main, [str(value) for value in (*given, *options)])


def split_of(fold):
    return json.loads((fold / "split.json").read_text())


def test_every_patient_is_held_out_by_one_fold(cross_validation):
    folds = [cross_validation / "cv" / f"fold-{number}" for number in (1, 2, 3)]
    held_out = [split_of(fold)["validation"] for fold in folds]
    assert sorted(map(len, held_out)) == [2, 2, 2]
    assert len({case for part in held_out for case in part}) == 6
    assert any({"P0-000-000", "P0-000-001"} <= set(part) for part in held_out)
    assert [split_of(fold)["fold"] for fold in folds] == [
        {"number": number, "of": 3} for number in (1, 2, 3)
    ]


def test_summary_has_mean_and_deviation_over_the_folds(cross_validation):
    summary = json.loads((cross_validation / "cv" / "summary.json").read_text())
    assert summary["runs"] == ["fold-1", "fold-2", "fold-3"]
    scores = [
        json.loads((cross_validation / "cv" / name / "results.json").read_text())["validation"]
        for name in summary["runs"]
    ]
    mean = summary["validation"]["dice_mean"]
    assert mean["values"] == [score["dice_mean"] for score in scores]
    assert mean["mean"] == pytest.approx(sum(mean["values"]) / 3)


def test_resuming_trains_the_folds_that_are_not_finished(cross_validation, capsys):
    folder = cross_validation / "cv"
    times = {file: file.stat().st_mtime_ns for file in folder.glob("fold-*/results.json")}
    shutil.rmtree(folder / "fold-2")
    assert run(brats_train.main, ["--resume", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "run 2 of 3: fold-2" in out
    assert "run 1 of 3" not in out
    assert "validation split, 3 runs" in out
    again = {file: file.stat().st_mtime_ns for file in folder.glob("fold-*/results.json")}
    assert {file.parent.name for file in times if times[file] != again[file]} == {"fold-2"}


def test_one_fold_alone_is_the_same_run(cross_validation):
    options = ("--output", cross_validation / "one", "--folds", 3, "--fold", 3)
    assert train(cross_validation, *options) == 0
    fold, alone = cross_validation / "cv" / "fold-3", cross_validation / "one"
    assert split_of(alone) == split_of(fold)
    results = [json.loads((run / "results.json").read_text()) for run in (alone, fold)]
    assert results[0]["validation"] == results[1]["validation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", 1), "Expected folds of at least 2, but got 1"),
        (("--fold", 1), "Expected fold from 1 to --folds, but got 1"),
        (("--folds", 3, "--fold", 4), "Expected fold from 1 to --folds, but got 4"),
        (("--folds", 6), "at least 6 patients, but the 6 cases are of 5"),
        (("--labels", "brats2022"), "Expected --labels to name a label scheme"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    cross_validation, options, message, capsys
):
    assert train(cross_validation, "--output", cross_validation / "new", *options) == 2
    assert message in capsys.readouterr().err
    assert not (cross_validation / "new").exists()
