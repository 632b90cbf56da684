"""A disk that runs full, as a limit on the size of files."""

import pytest

from cggm.runs.watch.logs import read_jsonl
from tests.disk import file_size_limit
from tests.pipelines.commands import call, left_over, refused, tiny_config, untrained_run
from tests.pipelines.faults import write_good_cases


@pytest.fixture
def training(tmp_path):
    write_good_cases(tmp_path / "data")
    paths = ("--data", tmp_path / "data", "--output", tmp_path / "run")
    return ("train", "--config", tiny_config(tmp_path), *paths, "--subsets", "false")


def test_no_space_for_the_cache(training, tmp_path, capsys):
    with file_size_limit(10_000):
        message = refused(capsys, *training)
    assert f"in {tmp_path / 'data' / '.slices'} to cache good0, but got: " in message
    assert "Free space or choose another cache folder" in message
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "data" / ".slices").iterdir()) == []


def test_no_space_for_the_first_checkpoint(training, tmp_path, capsys):
    with file_size_limit(1_000_000):
        assert call(*training) == 2
    progress, message = capsys.readouterr().err.splitlines()
    assert progress.startswith("epoch 1/1, ")
    assert message.startswith(f"error: {tmp_path / 'run' / 'checkpoints'}")
    assert "model.safetensors: File too large, so it was not written." in message
    assert message.endswith("Free some space, then continue (a training run with --resume).")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert left_over(tmp_path) == []
    assert call("train", "--resume", tmp_path / "run") == 0
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 1
    assert (tmp_path / "run" / "subsets.json").is_file()


def test_no_space_for_predictions_and_scores(tmp_path, capsys):
    write_good_cases(tmp_path / "data")
    model = untrained_run(tmp_path / "model")
    output, scores = tmp_path / "out", tmp_path / "scores.json"
    argv = ("--model", model, "--input", tmp_path / "data", "--output", output)
    with file_size_limit(100):
        message = refused(capsys, "infer", *argv)
    assert f"Expected to write {output / 'good0.nii.gz'}, but got: File too large." in message
    assert list(output.iterdir()) == []

    assert call("infer", *argv) == 0
    argv = ("--predictions", output, "--reference", tmp_path / "data", "--output", scores)
    with file_size_limit(100):
        message = refused(capsys, "evaluate", *argv)
    assert f"error: {scores}: File too large, so it was not written." in message
    assert not scores.exists()
    assert left_over(tmp_path) == []
