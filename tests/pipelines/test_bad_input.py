"""Every bad input ends with one message, exit code 2 and nothing half-written."""

import json
import shutil

import pytest
import yaml

from tests.cggm_seg.nifti import case_file
from tests.pipelines.commands import call, left_over, refused, tiny_config
from tests.pipelines.faults import FAULTS, write_bad_case, write_good_cases

IMAGE_FAULTS = [name for name, (part, _, _) in FAULTS.items() if part != "seg"]
WITHOUT_MISSING = [name for name in IMAGE_FAULTS if name != "missing"]  # inference fills zeros


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_good_cases(folder)
    return folder


@pytest.fixture(scope="module")
def model(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    argv = ("--data", cohort, "--config", tiny_config(folder), "--output", folder / "run")
    assert call("train", *argv, "--subsets", "false") == 0
    return folder / "run"


@pytest.fixture
def copied(model, tmp_path):
    shutil.copytree(model, tmp_path / "copied")
    return tmp_path / "copied"


def train(folder, data, *argv):
    paths = ("--data", data, "--config", tiny_config(folder), "--output", folder / "run")
    return ("train", *paths, "--subsets", "false", *argv)


@pytest.mark.parametrize("fault", FAULTS)
def test_strict_training_ends_at_a_bad_case(fault, tmp_path, capsys):
    data = tmp_path / "data"
    write_good_cases(data)
    file = write_bad_case(data, fault)
    message = refused(capsys, *train(tmp_path, data, "--strict"))
    assert message.startswith(f"error: {fault}, {file}: Expected")
    assert FAULTS[fault][2] in message
    assert not (tmp_path / "run").exists()
    assert left_over(tmp_path) == []


def test_training_goes_on_without_bad_cases_and_lists_them(tmp_path, capsys):
    data = tmp_path / "data"
    good = write_good_cases(data)
    files = {fault: write_bad_case(data, fault) for fault in FAULTS}
    assert call(*train(tmp_path, data)) == 0
    listed = capsys.readouterr().err.partition("7 cases were skipped:\n")[2].splitlines()
    assert len(listed) == len(FAULTS)
    for fault, file in files.items():
        assert any(f"  {fault}, {file}: Expected" in line for line in listed), fault
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(split["training"] + split["validation"]) == good
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("fault", ["missing", "flipped"])
@pytest.mark.parametrize("good", [0, 1])
def test_training_with_too_few_good_cases_names_what_is_wrong(good, fault, tmp_path, capsys):
    write_good_cases(tmp_path / "data", good)
    file = write_bad_case(tmp_path / "data", fault)
    message = refused(capsys, *train(tmp_path, tmp_path / "data"))
    assert "good case" in message
    assert f"{fault}, {file}: Expected" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", WITHOUT_MISSING)
def test_strict_inference_ends_at_a_bad_case(fault, model, tmp_path, capsys):
    file = write_bad_case(tmp_path / "in", fault)
    argv = ("--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out")
    message = refused(capsys, "infer", *argv, "--strict")
    assert message.startswith(f"error: {fault}, {file}: Expected")
    assert FAULTS[fault][2] in message
    assert not list(tmp_path.rglob("out/*"))
    assert f"{fault}, {file}: Expected" in refused(capsys, "infer", *argv)


def test_inference_goes_on_without_bad_cases_and_lists_them(model, tmp_path, capsys):
    good = write_good_cases(tmp_path / "in", 2)
    files = {fault: write_bad_case(tmp_path / "in", fault) for fault in WITHOUT_MISSING}
    output = tmp_path / "out"
    argv = ("--model", model, "--input", tmp_path / "in", "--output", output)
    assert call("infer", *argv) == 0
    printed = capsys.readouterr()
    assert printed.out == f"2 label maps in {output}\n"
    header, *listed = printed.err.splitlines()
    assert header == f"{len(files)} cases were skipped:"
    for line, fault in zip(listed, sorted(files), strict=True):
        assert line.startswith(f"  {fault}, {files[fault]}: Expected")
    assert sorted(path.name for path in output.glob("*.*")) == [
        *(f"{name}.nii.gz" for name in good),
        "summary.csv",
    ]


def test_inference_overwrites_only_if_asked(model, tmp_path, capsys):
    write_good_cases(tmp_path / "in", 2)
    first, second = (tmp_path / "out" / f"good{k}.nii.gz" for k in range(2))
    argv = ("--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert call("infer", *argv) == 0
    expected = first.read_bytes()
    first.write_text("mine")
    message = refused(capsys, "infer", *argv, "--strict")
    assert f"good0, {first}: Expected no prediction yet" in message
    second.unlink()
    capsys.readouterr()
    assert call("infer", *argv) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("1 label map in ")
    assert printed.err.startswith(f"1 case was skipped:\n  good0, {first}: Expected no prediction")
    assert first.read_text() == "mine"
    assert str(first) in refused(capsys, "infer", *argv, "--strict")
    assert call("infer", *argv, "--overwrite") == 0
    assert first.read_bytes() == expected


@pytest.mark.parametrize("fault", ["truncated", "flipped", "shape", "affine", "label"])
@pytest.mark.parametrize("side", ["prediction", "reference"])
def test_evaluation_with_a_bad_label_map(fault, side, tmp_path, capsys):
    reference, predictions = tmp_path / "reference", tmp_path / "predictions"
    names = write_good_cases(reference, 2)
    predictions.mkdir()
    for name in names:
        shutil.copy(case_file(reference, name, "seg"), predictions / f"{name}.nii.gz")
    bad = predictions / "good1.nii.gz"
    if side == "reference":
        bad = case_file(reference, "good1", "seg")
    FAULTS[fault][1](bad)
    results = tmp_path / "scores.json"
    argv = ("--predictions", predictions, "--reference", reference, "--output", results)

    message = refused(capsys, "evaluate", *argv, "--strict")
    assert "good1" in message
    assert str(bad) in message
    assert not results.exists()

    assert call("evaluate", *argv) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("1 case was skipped:\n  good1, ")
    scores = json.loads(results.read_text())
    assert list(scores["rows"]) == ["good0"]
    assert scores["rows"]["good0"]["dice_WT"] == 1
    assert len(scores["problems"]) == 1


@pytest.mark.parametrize("content", ["nothing", "other files", "no folder"])
@pytest.mark.parametrize("script", ["train", "infer", "evaluate"])
def test_folder_without_cases(script, content, model, tmp_path, capsys):
    data = tmp_path / "data"
    if content != "no folder":
        data.mkdir()
    if content == "other files":
        (data / "notes.txt").touch()
    argv = {
        "train": train(tmp_path, data),
        "infer": ("infer", "--model", model, "--input", data, "--output", tmp_path / "run"),
        "evaluate": ("evaluate", "--predictions", tmp_path, "--reference", data),
    }
    message = refused(capsys, *argv[script])
    assert str(data) in message
    assert "Expected BraTS cases" in message or "Check the path" in message
    assert not (tmp_path / "run").exists()
    assert left_over(tmp_path) == []


def test_checkpoint_of_another_network(copied, cohort, tmp_path, capsys):
    before = (copied / "config.yaml").read_text()
    message = refused(capsys, "train", "--resume", copied, "--network.decoder_channels", 24)
    assert "a run keeps what its results depend on" in message
    assert "--network.decoder_channels 24 (it has " in message
    assert (copied / "config.yaml").read_text() == before

    other = yaml.safe_load(before)
    other["network"]["decoder_channels"] = 24
    (copied / "config.yaml").write_text(yaml.safe_dump(other))
    argv = ("--model", copied, "--input", cohort, "--output", tmp_path / "out")
    assert "weights of another network" in refused(capsys, "infer", *argv)
    assert not (tmp_path / "out").exists()


def test_damaged_checkpoint(copied, cohort, tmp_path, capsys):
    [weights] = copied.glob("checkpoints/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    argv = ("--model", copied, "--input", cohort, "--output", tmp_path / "out")
    for command in (("infer", *argv), ("train", "--resume", copied)):
        message = refused(capsys, *command)
        assert f"{weights}: damaged checkpoint, it is cut short or altered" in message
    assert not (tmp_path / "out").exists()


def test_data_of_another_run(copied, tmp_path, capsys):
    write_good_cases(tmp_path / "data", 4)
    message = refused(capsys, "train", "--resume", copied, "--data", tmp_path / "data")
    assert "differs in its data" in message


def test_model_that_is_no_run_folder(cohort, tmp_path, capsys):
    for model in (tmp_path / "nowhere", tmp_path):
        argv = ("--model", model, "--input", cohort, "--output", tmp_path / "out")
        assert str(model) in refused(capsys, "infer", *argv)
    assert not (tmp_path / "out").exists()


def test_occupied_output(model, cohort, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    assert "expected a new or empty run folder" in refused(capsys, *train(tmp_path, cohort))
    file = folder / "mine.txt"
    argv = ("--model", model, "--input", cohort, "--output", file)
    assert str(file) in refused(capsys, "infer", *argv)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
