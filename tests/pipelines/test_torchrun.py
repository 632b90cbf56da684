"""The commands as two ranks that torchrun starts, against one process."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file

from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.mosi.simulation import simulate_mosi
from tests.cggm_seg.nifti import write_case
from tests.pipelines.commands import SCRIPTS, call, left_over, tiny_config
from tests.pipelines.faults import write_bad_case
from tests.pipelines.launching import launch, launch_ranks, run_all

SEQUENCES = """
max_epochs: 3
batch_size: 8
device: cpu
subsets: false
curves: false
report: false
network: {{width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1, dropout: {dropout}}}
optimizer: {{lr: {lr}, head_lr: {lr}}}
balancer: {{name: CGGM, settings: {{gate: null}}}}
"""
QUICK = ("--curves", "false", "--report", "false")


def ranks_of(process):
    """Process numbers of the ranks, in order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in children.split()}
    ranks = {pid: e.split(b"\0RANK=")[1][:1] for pid, e in environments.items() if b"\0RANK=" in e}
    return [int(pid) for pid in sorted(ranks, key=lambda pid: ranks[pid])]


def weights(run):
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


def farthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
    (folder / "dropout.yaml").write_text(SEQUENCES.format(dropout=0.3, lr=0.01))
    # Adam makes whole steps of what rounding leaves of a gradient that is 0, hence small ones
    (folder / "plain.yaml").write_text(SEQUENCES.format(dropout=0, lr=1e-6))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """A run that a signal to the second rank ended, its continuation, and others beside."""
    common = ("--data", folder / "mosi.pkl", "--config", folder / "dropout.yaml")
    script, killed = SCRIPTS["mosi"].__file__, folder / "killed"
    process = launch(script, *common, "--output", killed, "--save_minutes", 0)
    while not list(killed.glob("checkpoints/epoch-0000-step-*[2-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    said = process.communicate(timeout=120)[1]
    left = len(read_jsonl(killed / "balance.jsonl"))
    mosi, plain = "mosi_train", ("--config", folder / "plain.yaml")
    ended = run_all(
        (mosi, "--resume", killed),
        (mosi, *common, "--output", folder / "whole"),
        (mosi, *common, *plain, "--output", folder / "equal"),
        (mosi, *common, "--output", folder / "none", "--balancer.settings", '{"rhoo": 1}'),
    )
    return said, left, ended


def test_signal_to_one_rank_saves_once_and_ends_all(trained):
    said, left, _ = trained
    assert said.count("SIGUSR1: saved step") == 1
    assert "exitcode  : 138" in said or "exitcode: 138" in said
    assert "Traceback" not in said.partition("ChildFailedError")[0].split("torch/distributed")[0]
    assert 2 <= left < 24


def test_resumed_ranks_equal_uninterrupted_ones_bit_for_bit(trained, folder):
    assert farthest(weights(folder / "killed"), weights(folder / "whole")) == 0
    for log in ("metrics.jsonl", "balance.jsonl", "results.json"):
        assert (folder / "killed" / log).read_text() == (folder / "whole" / log).read_text()
    assert left_over(folder) == []


def test_two_ranks_equal_one_process(trained, folder):
    data, config = folder / "mosi.pkl", folder / "plain.yaml"
    assert call("mosi", "--data", data, "--config", config, "--output", folder / "one") == 0
    one, two = folder / "one", folder / "equal"
    lines = [read_jsonl(run / "balance.jsonl") for run in (one, two)]
    assert len(lines[0]) == 24
    for a, b in zip(*lines, strict=True):
        for name in ("score", "term", "cosine", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4)
    for a, b in zip(*(read_jsonl(r / "metrics.jsonl") for r in (one, two)), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_what_is_refused_is_said_once(trained, folder):
    code, out, err = trained[2]
    assert code == 1  # torchrun's own
    assert err.count("error: ") == 1, err
    assert "error: Unknown setting 'rhoo' of CGGM. Did you mean rho?" in err
    assert "exitcode  : 2" in err
    assert out.count("network") == 3  # of the three that were not refused
    assert not (folder / "none").exists()


def test_another_number_of_processes_is_refused_on_resume(trained, folder, capsys):
    assert call("mosi", "--resume", folder / "whole", "--max_epochs", 4) == 2
    assert "differs in its number of processes" in capsys.readouterr().err


@pytest.mark.slow
def test_cases_are_shared_to_the_same_results(tmp_path, capsys):
    cohort, run = tmp_path / "cohort", tmp_path / "run"
    for k in range(5):
        write_case(cohort, f"case{k}", shape=(40, 36, 12), seed=k)
    write_bad_case(cohort, "truncated")
    config = tiny_config(tmp_path)
    out, table = [tmp_path / "one", tmp_path / "two"], [tmp_path / "1.json", tmp_path / "2.json"]
    shared = [
        ("train", "--data", cohort, "--config", config, "--output", run, *QUICK),
        ("infer", "--model", run, "--input", cohort, "--output", out[1]),
        ("evaluate", "--predictions", out[1], "--reference", cohort, "--output", table[1]),
    ]
    alone = [
        ("infer", "--model", run, "--input", cohort, "--output", out[0]),
        ("evaluate", "--predictions", out[0], "--reference", cohort, "--output", table[0]),
    ]
    code, said, _ = run_all(*((f"brats_{name}", *argv) for name, *argv in shared))
    assert code == 0
    capsys.readouterr()
    assert [call(*words) for words in alone] == [0, 0]
    expected = capsys.readouterr().out.replace(str(out[0]), str(out[1]))
    reports = [str(file.with_suffix(".html")) for file in table]
    assert said.endswith(expected.replace(*reports))
    assert len(read_jsonl(run / "metrics.jsonl")) == 1
    one, two = (json.loads(file.read_text()) for file in table)
    assert one["rows"] == two["rows"]
    assert list(one["rows"]) == list(two["rows"]) == [f"case{k}" for k in range(5)]
    for file in sorted(out[0].glob("*.nii.gz")):
        other = nib.load(out[1] / file.name)
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), other.dataobj)
    volumes = [[row[:5] for row in csv.reader((o / "summary.csv").open())] for o in out]
    assert volumes[0] == volumes[1]
    assert [row[0] for row in volumes[1]] == ["case", *(f"case{k}" for k in range(5))]
    assert left_over(run) == []


@pytest.mark.slow
def test_group_that_lost_a_rank_goes_on_by_itself_to_the_same_bits(trained, folder):
    data = ("--data", folder / "mosi.pkl", "--config", folder / "dropout.yaml")
    lost = folder / "lost"
    process = launch_ranks(1, "mosi", "train", *data, "--output", lost, "--save_minutes", 0)
    while not list(lost.glob("checkpoints/epoch-0000-step-*[2-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count(f"started again: {lost} goes on from its last checkpoint\n") == 1
    assert "Traceback" not in said
    environment = json.loads((lost / "environment.json").read_text())
    assert environment["resumed_at"] >= 2
    assert len(environment["earlier_starts"]) == 1
    assert farthest(weights(lost), weights(folder / "whole")) == 0
    for log in ("metrics.jsonl", "balance.jsonl", "results.json"):
        assert (lost / log).read_text() == (folder / "whole" / log).read_text()


def test_signal_to_the_launcher_is_one_line(trained, folder):
    data = ("--data", folder / "mosi.pkl", "--config", folder / "dropout.yaml")
    told = folder / "told"
    process = launch_ranks(0, "mosi", "train", *data, "--output", told, "--save_minutes", 0)
    while not list(told.glob("checkpoints/epoch-0000-step-*[2-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGUSR1
    assert "Traceback" not in said
    assert said.count("SIGUSR1: saved step") == 1
    assert said.endswith("SIGUSR1: the ranks were told to save and to end.\n")
