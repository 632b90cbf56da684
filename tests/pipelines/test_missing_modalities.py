"""Trainings on cases of which some lack T1ce: on one process, on two, and resumed."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from cggm.runs.checkpoints.files import find_checkpoints
from cggm.runs.watch.logs import read_jsonl
from tests.cggm_seg.nifti import case_file, write_case
from tests.pipelines.commands import TINY, call, start
from tests.pipelines.launching import run_all
from tests.quantifiers import every

LACKING = ("case1", "case3")


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    folder = tmp_path_factory.mktemp("missing")
    (folder / "tiny.yaml").write_text(
        f"max_epochs: 2\n{TINY.replace('per_case: 2', 'per_case: 6')}"
    )
    for seed in range(5):
        write_case(folder / "data", f"case{seed}", shape=(40, 36, 16), seed=seed)
    for case_id in LACKING:
        case_file(folder / "data", case_id, "t1ce").unlink()
    return ("--data", folder / "data", "--config", folder / "tiny.yaml", "--missing", "allow")


@pytest.fixture(scope="module")
def whole(common, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert call("train", *common, "--output", run, "--workers", 0) == 0
    return run


def weights(run):
    return load_file(find_checkpoints(run / "checkpoints")[-1] / "model.safetensors")


def test_run_says_what_is_lacking(whole):
    assert json.loads((whole / "split.json").read_text())["lacking"] == {"t1ce": list(LACKING)}
    assert "Cases that lack modalities" in (whole / "report.html").read_text()
    steps = read_jsonl(whole / "balance.jsonl")
    assert len(steps) == 12
    assert every(step["score"]["flair"] is not None for step in steps)


def test_without_leave_such_cases_are_left_out(common, tmp_path, capsys):
    refusing = [word for word in common if word not in ("--missing", "allow")]
    short = ("--max_epochs", 1, "--report", "false", "--curves", "false", "--subsets", "false")
    assert call("train", *refusing, *short, "--output", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "2 cases were skipped" in said
    assert every(case_id in said for case_id in LACKING)
    assert "lacking" not in json.loads((tmp_path / "run" / "split.json").read_text())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--method", "umt"), "UnimodalTeacher, which"),
        (("--method", "gblending"), "GradientBlending, which"),
        (("--method", "agm"), "AGM, which cannot"),
        (("--gradients", 1), "--gradients, but"),
    ],
)
def test_what_would_take_zeros_for_an_image_is_refused(common, tmp_path, capsys, options, what):
    assert call("train", *common, *options, "--output", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"Expected complete cases for {what}" in said
    assert "2 lack a modality, such as case" in said
    assert "Give --missing refuse" in said
    assert not (tmp_path / "run").exists()


def test_interrupted_training_goes_on_as_if_it_had_not_been(common, whole, tmp_path):
    run = tmp_path / "run"
    process = start("train", *common, "--output", run, "--save_minutes", 0, "--workers", 1)
    while not any(
        p.name > "epoch-0000-step-00000002" for p in find_checkpoints(run / "checkpoints")
    ):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert not (run / "results.json").exists()
    assert call("train", "--resume", run) == 0
    found, expected = weights(run), weights(whole)
    assert every(torch.equal(found[name], expected[name]) for name in expected)


def test_two_ranks_train_on_the_same_cases(common, whole, tmp_path):
    run = tmp_path / "ranks"
    code, _, said = run_all(("brats_train", *common, "--device", "cpu", "--output", run))
    assert code == 0, said
    split = json.loads((run / "split.json").read_text())
    assert split == json.loads((whole / "split.json").read_text())
