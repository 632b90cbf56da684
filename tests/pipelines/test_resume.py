"""Trainings as processes that signals end at any time, and what they come to once resumed."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cggm.runs.checkpoints.files import find_checkpoints
from tests.cggm_seg.nifti import write_case
from tests.pipelines.commands import TINY, call, left_over, start
from tests.quantifiers import every

SEQUENCES = """
max_epochs: 3
batch_size: 128
subsets: false
curves: false
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
optimizer: {lr: 0.01, head_lr: 0.01}
"""
# 10 steps of an epoch, of which the optimizer makes three
SLICES = TINY.replace("per_case: 2", "per_case: 8").replace(
    "warmup_epochs: 1", "warmup_epochs: 1, accumulation_steps: 4"
)
EVERY_STEP = ("--save_minutes", 0)


def end(number, run, checkpoint, script, *argv):
    """Sends a signal to all processes of a command once it has a checkpoint; returns its end."""
    process = start(script, *argv, start_new_session=True)
    while not any(path.name >= checkpoint for path in find_checkpoints(run / "checkpoints")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert not (run / "results.json").exists()
    return process.returncode, err.splitlines()[-1] if err else ""


def assert_same(run, whole):
    weights = [
        load_file(find_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")
        for folder in (run, whole)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert every(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for log in ("metrics.jsonl", "balance.jsonl", "results.json"):
        assert (run / log).read_text() == (whole / log).read_text()
    assert left_over(run) == []


SIGNALS = [
    ("SIGTERM", 143),
    pytest.param("SIGUSR1", 138, marks=pytest.mark.slow),
    pytest.param("SIGINT", 130, marks=pytest.mark.slow),
    pytest.param("SIGHUP", 129, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_signal_ends_a_training_with_all_that_it_made(name, code, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SEQUENCES)
    common = ("mfeat", "--config", tmp_path / "tiny.yaml")
    run, whole = tmp_path / "run", tmp_path / "whole"
    number = getattr(signal, name)
    ended = end(number, run, "epoch-0001", *common, "--output", run, *EVERY_STEP)
    last = find_checkpoints(run / "checkpoints")[-1]
    epochs, step = int(last.name[6:10]), int(last.name[-8:])
    said = f"{name}: saved step {step}, {epochs} epochs completed; continue with --resume {run}"
    assert ended == (code, said)
    assert call("mfeat", "--resume", run) == 0
    assert call(*common, "--output", whole) == 0
    assert_same(run, whole)
    assert (whole / "report.html").is_file()  # which runs without curves have, too
    assert not (whole / "curves").exists()


def own_arrays(folder):
    """Arrays as somebody has them: samples that lack a modality, groups, splits to be drawn."""
    rng = np.random.default_rng(0)
    target = rng.integers(3, size=240)
    lab = rng.standard_normal((240, 4)) + target[:, None]
    lab[::7] = np.nan
    folder.mkdir()
    np.save(folder / "lab.npy", lab)
    np.save(folder / "ecg.npy", rng.standard_normal((240, 6, 2)) + target[:, None, None])
    np.save(folder / "ecg.lengths.npy", rng.integers(1, 7, size=240))
    np.save(folder / "group.npy", np.arange(240) // 2)
    np.save(folder / "target.npy", np.array(["low", "mid", "high"])[target])


def test_arrays_go_on_from_a_kill_and_a_signal_as_if_they_had_never_ended(tmp_path):
    own_arrays(tmp_path / "own")
    short = SEQUENCES.replace("batch_size: 128", "batch_size: 16\nmissing: absent")
    (tmp_path / "tiny.yaml").write_text(short)
    common = ("arrays", "--data", tmp_path / "own", "--config", tmp_path / "tiny.yaml")
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = (*common, "--output", run, *EVERY_STEP)
    killed = end(signal.SIGKILL, run, "epoch-0000-step-00000003", *first)
    assert killed[0] == -signal.SIGKILL
    code, said = end(signal.SIGTERM, run, "epoch-0001-step", "arrays", "--resume", run)
    assert (code, said.startswith("SIGTERM: saved step ")) == (143, True)
    assert call("arrays", "--resume", run) == 0
    assert call(*common, "--output", whole) == 0
    assert_same(run, whole)


def test_a_second_training_on_a_folder_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(SEQUENCES)
    common = ("mfeat", "--config", tmp_path / "tiny.yaml", "--output", tmp_path / "run")
    first = start(*common, "--max_epochs", 500, *EVERY_STEP)
    while not find_checkpoints(tmp_path / "run" / "checkpoints"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it surely goes on
    capsys.readouterr()
    for argv in (("mfeat", "--resume", tmp_path / "run"), (*common, "--seed", 1)):
        assert call(*argv) == 2
        said = capsys.readouterr().err
        assert f"run: a training, process {first.pid} on " in said
        assert "still writes there. Wait until it ends" in said
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 143
    assert "\nseed: 0\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert left_over(tmp_path / "run") == []


def test_killed_training_on_slices_goes_on_from_the_middle_of_an_epoch(tmp_path):
    (tmp_path / "tiny.yaml").write_text(f"max_epochs: 2\n{SLICES}")
    for k in range(6):
        write_case(tmp_path / "data", f"case{k}", shape=(40, 36, 16), seed=k)
    common = ("--data", tmp_path / "data", "--config", tmp_path / "tiny.yaml", "--subsets", "false")
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = (*common, "--output", run, *EVERY_STEP, "--workers", 1)
    killed = end(signal.SIGKILL, run, "epoch-0000-step-00000004", "train", *first)
    assert killed[0] == -signal.SIGKILL
    again = ("--resume", run)
    code, said = end(signal.SIGTERM, run, "epoch-0001-step-00000014", "train", *again)
    assert (code, said.startswith("SIGTERM: saved step ")) == (143, True)
    assert call("train", *again, "--workers", 0) == 0
    assert call("train", *common, "--output", whole) == 0
    assert_same(run, whole)
