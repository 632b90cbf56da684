import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.storage.files import replacing, write_atomically
from tests.quantifiers import every


def test_write_atomically_replaces_the_content(tmp_path):
    file = tmp_path / "a.txt"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_replacing_keeps_the_ending_and_respects_the_umask(tmp_path):
    file = tmp_path / "case.nii.gz"
    with replacing(file) as temporary:
        assert temporary.name == "case.nii.gz"
        assert temporary.parent.parent == tmp_path
        temporary.write_bytes(b"x")
        assert not file.exists()
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    assert file.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")

    def write_half():
        with replacing(file) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_failed_write_names_the_file_but_no_other_error_is_renamed(tmp_path):
    file = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"a\.txt") as caught, replacing(file):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(file)
    with pytest.raises(FileNotFoundError) as caught, replacing(file):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_create_names_the_folder_by_time_and_never_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.create(None, name="brats") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert every(run.path.parent == Path("runs") for run in runs)
    assert every(run.path.name.startswith("brats-20") for run in runs)
    assert every(run.checkpoints.is_dir() for run in runs)


def test_create_takes_an_empty_folder_and_refuses_a_full_one(tmp_path):
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    run = RunFolder.create(empty, name="x")
    assert run.path == empty
    run.config.touch()
    with pytest.raises(UserError, match=r"--resume .* or give another --output"):
        RunFolder.create(empty, name="x")


def test_create_refuses_a_path_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder.create(file, name="x")
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder.create(file / "inside", name="x")


def test_a_planned_folder_appears_when_it_is_made(tmp_path):
    run = RunFolder.plan(tmp_path / "a" / "b", name="x")
    assert list(tmp_path.iterdir()) == []
    run.make()
    assert run.checkpoints.is_dir()


def test_what_a_killed_start_leaves_counts_as_empty(tmp_path):
    run = RunFolder.create(tmp_path / "run", name="x")
    (run.path / ".tmp-1-ab-config.yaml").touch()
    RunFolder.create(run.path, name="x")
    (run.checkpoints / "epoch-0001-step-00000001").touch()
    with pytest.raises(UserError, match="expected a new or empty run folder"):
        RunFolder.plan(run.path, name="x")


def test_a_sweep_takes_drafts_alone(tmp_path):
    (tmp_path / ".tmp-1-ab-config.yaml").touch()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder(tmp_path).sweep()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_open_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.yaml and no checkpoints"):
        RunFolder.open(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"has no config\.yaml\."):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert RunFolder.open(tmp_path).config == tmp_path / "config.yaml"


def test_a_group_that_was_killed_before_its_first_run_is_opened(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert RunFolder.open(tmp_path).members() == [RunFolder(tmp_path)]
    RunFolder(tmp_path / "seed-0").make()
    assert RunFolder.open(tmp_path).members() == [RunFolder(tmp_path)]


def test_environment_tells_versions_and_keeps_earlier_starts(tmp_path):
    run = RunFolder.create(tmp_path / "run", name="x")
    run.write_environment()
    first = json.loads(run.environment.read_text())
    assert first["packages"]["torch"]
    assert first["packages"]["numpy"]
    assert first["python"].count(".") == 2
    assert first["command"] == sys.argv
    assert first["cpus"] >= 1
    run.write_environment()
    run.write_environment()
    third = json.loads(run.environment.read_text())
    assert third["earlier_starts"][0] == first
    assert len(third["earlier_starts"]) == 2
    assert "earlier_starts" not in third["earlier_starts"][1]


def test_commit_is_that_of_the_source(tmp_path):
    source = Path(__file__).parents[3] / "cggm"
    copy = tmp_path / "cggm"
    (copy / "runs").mkdir(parents=True)
    for name in (
        "__init__.py",
        "__init__.pyi",
        "errors.py",
        "runs/__init__.py",
        "runs/__init__.pyi",
        "runs/environment.py",
    ):
        (copy / name).write_bytes((source / name).read_bytes())
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    code = "from cggm.runs.environment import _commit; print(_commit())"
    show = [sys.executable, "-Bc", code]
    shown = subprocess.run(show, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == head.stdout
    (copy / "errors.py").write_text((copy / "errors.py").read_text() + "\n")
    shown = subprocess.run(show, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == f"{head.stdout.strip()}+"


def test_task_is_what_the_configuration_says(tmp_path):
    run = RunFolder(tmp_path)
    for text, task in (
        ("task: digits\nslices: {size: 32}\n", "digits"),
        ("slices: {size: 32}\n", "brats"),
        ("seeds: 1\nfold: all\n", "iemocap"),
        ("seeds: 1\nstore: null\n", "mosi"),
        ("seeds: 1\nviews: [pix]\n", "mfeat"),
        ("seeds: 1\n", "food101"),
    ):
        run.config.write_text(text)
        assert run.task() == task
    for text in ("lr: 1\n", "task: 3\n", "[]\n", ""):
        run.config.write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: expected a line `task: NAME`"):
            run.task()
