"""The export command: what it leaves behind, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cggm.runs.cli import run
from pipelines import export
from tests.cggm_seg.exporting import finished_run
from tests.disk import file_size_limit


def call(*argv):
    return run(export.main, [str(argument) for argument in argv])


def refused(capsys, *argv):
    assert call(*argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    return message


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"))


def test_program_lies_in_the_run_folder(finished, capsys):
    folder, network = finished
    command = [sys.executable, export.__file__, str(folder.path), "--to", "torch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    output = folder.path / "export" / "torch"
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    names = ["MODEL_CARD.md", "SHA256SUMS", "labels.ctbl", "model.pt2"]
    assert sorted(path.name for path in output.iterdir()) == names
    notes = {"modalities": "", "model_card": ""}
    program = torch.export.load(output / "model.pt2", extra_files=notes)
    assert notes["modalities"] == "flair,t1ce"
    assert "SIMULATED" in notes["model_card"]
    assert program.state_dict.keys() == network.state_dict().keys()
    before = (output / "model.pt2").stat().st_mtime_ns
    assert f"{output}: expected no export there yet" in refused(
        capsys, folder.path, "--to", "torch"
    )
    assert (output / "model.pt2").stat().st_mtime_ns == before


def test_no_run_folder(tmp_path, capsys):
    message = refused(capsys, tmp_path / "nowhere", "--to", "onnx")
    assert "nowhere: no such folder. Give the folder of a run." in message
    assert "expected a run folder" in refused(capsys, tmp_path, "--to", "onnx")


def test_no_checkpoint(finished, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(finished[0].config.read_text())
    message = refused(capsys, tmp_path, "--to", "torch", "--output", tmp_path / "out")
    assert "there is no checkpoint. Train first, or give another run." in message
    assert not (tmp_path / "out").exists()


def test_run_of_another_task(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("max_epochs: 1\nhidden: 3\n")
    assert "expected a line `task: NAME`" in refused(capsys, tmp_path, "--to", "torch")
    (tmp_path / "config.yaml").write_text("task: brats\nmax_epochs: 1\nhidden: 3\n")
    assert "unknown key `hidden`" in refused(capsys, tmp_path, "--to", "torch")


def test_output_that_exists_or_cannot_be_made(finished, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    argv = (finished[0].path, "--to", "torch", "--output")
    assert "expected no export there yet" in refused(capsys, *argv, tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    taken = f"{tmp_path / 'file'}: File exists"
    assert taken in refused(capsys, *argv, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("form", ["torch", "onnx", "bundle"])
def test_full_disk(form, finished, tmp_path, capsys):
    pytest.importorskip({"onnx": "onnxscript", "bundle": "fire"}.get(form, "torch"))
    output = tmp_path / "made" / "out"
    with file_size_limit(50_000):
        message = refused(capsys, finished[0].path, "--to", form, "--output", output)
    assert f"{output}" in message
    assert "File too large, so it was not written. " in message
    assert list(output.parent.iterdir()) == []


def test_missing_package_is_named(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cggm_seg.export.run.find_spec", lambda name: None)
    message = refused(capsys, finished[0].path, "--to", "onnx", "--output", tmp_path / "out")
    assert "onnx, onnxscript, onnxruntime cannot be found" in message
    assert "cggm[seg,export]" in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "Missing --run"),
        (("a",), "Missing --to"),
        (("a", "--to", "tflite"), "--to"),
        (("a", "--two", "onnx"), "Unknown option --two"),
    ],
)
def test_wrong_options(argv, expected, capsys):
    assert expected in refused(capsys, *argv)


def test_template_of_the_bundle_is_where_the_command_looks():
    names = {path.relative_to(export.SHARED).as_posix() for path in Path(export.SHARED).rglob("*")}
    assert {"configs/inference.json", "scripts/network.py", "docs/README.md"} <= names
