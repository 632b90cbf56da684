"""The commands for sequences: trained, killed, resumed, repeated, and given wrong data."""

import json
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.arrays import simulate_array_folder
from cggm_cls.data.food101.simulation import simulate_features
from cggm_cls.data.iemocap.simulation import simulate_iemocap
from cggm_cls.data.mosi.simulation import simulate_mosi
from tests.pipelines.commands import ROOT, call, left_over, refused, start
from tests.quantifiers import every

TASKS = ("mosi", "iemocap", "food101", "mfeat", "arrays")
METRIC = {"mosi": "mae"}
TINY = """
max_epochs: {epochs}
batch_size: 32
subsets: false
network: {{width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}}
optimizer: {{lr: 0.01, head_lr: 0.01}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(folder):
    """Options that give each task its small simulated data."""
    simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
    simulate_iemocap(folder / "iemocap", per_speaker=6)
    features = simulate_features(folder / "food101")
    simulate_array_folder(folder / "arrays", samples=80)
    return {
        "mosi": ("--data", folder / "mosi.pkl"),
        "iemocap": ("--data", folder / "iemocap"),
        "food101": ("--data", features),
        "mfeat": (),
        "arrays": ("--data", folder / "arrays"),
    }


@pytest.fixture
def config(tmp_path):
    def write(epochs):
        file = tmp_path / f"tiny-{epochs}.yaml"
        file.write_text(TINY.format(epochs=epochs))
        return file

    return write


@pytest.mark.parametrize("task", TASKS)
def test_training_ends_with_test_metrics_curves_and_a_run_folder(
    task, data, config, tmp_path, capsys
):
    run = tmp_path / "run"
    assert call(task, *data[task], "--config", config(1), "--output", run) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert ("(SIMULATED)" in out) == (task != "mfeat")
    results = json.loads((run / "results.json").read_text())
    assert METRIC.get(task, "acc") in results["test"]
    assert results["simulated"] == (task != "mfeat")
    made = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "balance.jsonl"} <= made
    assert {"score.png", "gradient_norm.png"} <= {path.name for path in (run / "curves").iterdir()}
    record = read_jsonl(run / "balance.jsonl")[0]
    assert len(record["score"]) == {"food101": 2, "arrays": 2}.get(task, 3)
    assert left_over(tmp_path) == []


def test_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(data, config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = (*data["mosi"], "--config", config(4))
    process = start("mosi", *common, "--output", killed)
    while not [*killed.glob("checkpoints/epoch-0002-*")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not [*killed.glob("checkpoints/epoch-0004-*")]
    assert call("mosi", "--resume", killed) == 0
    assert call("mosi", *common, "--output", whole) == 0
    weights = [
        load_file(next(run.glob("checkpoints/epoch-0004-*")) / "model.safetensors")
        for run in (whole, killed)
    ]
    assert every(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("metrics.jsonl", "balance.jsonl", "results.json"):
        assert (whole / name).read_text() == (killed / name).read_text()


def test_seeds_are_runs_of_their_own_with_a_summary(data, config, tmp_path, capsys):
    group = tmp_path / "group"
    options = (*data["mosi"], "--config", config(1), "--output", group)
    assert call("mosi", *options, "--seed", 5, "--seeds", 2) == 0
    summary = json.loads((group / "summary.json").read_text())
    assert summary["runs"] == ["seed-5", "seed-6"]
    first, second = summary["test"]["mae"]["values"]
    assert first != second
    assert summary["test"]["mae"]["mean"] == pytest.approx((first + second) / 2)
    assert "test split (SIMULATED), 2 runs" in capsys.readouterr().out
    before = (group / "seed-5" / "results.json").stat().st_mtime_ns
    assert call("mosi", "--resume", group) == 0
    assert (group / "seed-5" / "results.json").stat().st_mtime_ns == before


def test_folds_differ_in_what_they_hold_out(data, config, tmp_path):
    results = []
    for fold in (1, 4):
        run = tmp_path / f"fold-{fold}"
        options = ("--config", config(1), "--output", run, "--fold", fold)
        assert call("iemocap", *data["iemocap"], *options) == 0
        results.append(json.loads((run / "results.json").read_text())["test"]["confusion"])
    assert results[0] != results[1]


def test_pickle_is_not_read_after_its_conversion(data, config, tmp_path):
    file = tmp_path / "mosi.pkl"
    simulate_mosi(file, train=40, valid=20, test=20)
    options = ("--config", config(1))
    assert call("mosi", "--data", file, *options, "--output", tmp_path / "a") == 0
    file.unlink()
    store = next(tmp_path.glob("mosi.pkl.*"))
    assert call("mosi", "--data", store, *options, "--output", tmp_path / "b") == 0
    a, b = ((tmp_path / name / "results.json").read_text() for name in "ab")
    assert a == b


class Hostile:
    """Runs a command when an ordinary pickle loader reads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def test_hostile_pickle_is_refused_in_one_line_and_leaves_nothing(tmp_path, capsys):
    file = tmp_path / "mosi.pkl"
    file.write_bytes(pickle.dumps({"train": Hostile(f"touch {tmp_path / 'ran'}")}))
    message = refused(capsys, "mosi", "--data", file, "--output", tmp_path / "run")
    assert str(file) in message
    assert "system" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mosi.pkl"]


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("mosi", ("--data", "{folder}/nowhere.pkl"), "nowhere.pkl"),
        ("mosi", ("--data", "{folder}/iemocap"), "iemocap"),
        ("iemocap", ("--data", "{folder}/mosi.pkl"), "mosi.pkl"),
        ("iemocap", ("--data", "{folder}/iemocap", "--fold", "11"), "11"),
        ("iemocap", ("--fold", "some"), "--fold"),
        ("food101", ("--data", "{folder}/iemocap"), "features"),
        ("food101_features", ("--data", "{folder}/iemocap"), "--text_model"),
        ("mfeat", ("--data", "{folder}/iemocap"), "iemocap"),
        ("mfeat", ("--views", "[fou,moon]"), "moon"),
        ("mosi", ("--seeds", "0"), "Expected seeds of at least 1, but got 0"),
        ("mosi", ("--network.width", "41"), "Expected network.width to be even and a multiple"),
        ("mosi", ("--network.readout", "last"), "--network.readout"),
        ("mosi", ("--balancer.head_layers", "3"), "Expected balancer.head_layers of 1 or 2"),
        ("mosi", ("--optimizer.lr", "-1"), "Expected optimizer.lr of at least 0, but got -1"),
        ("mosi", ("--balancer.settings", "{{rhoo: 1}}"), "Unknown setting 'rhoo' of GuidedHeads"),
        ("mosi", ("--method", "pmr"), "PMR cannot be used here: Expected a linear output layer"),
        ("mfeat", ("--method", "mslr_keep"), "Expected `rates` for the modalities ['pix', 'fou'"),
        ("mosi", ("--lr", "1"), "Unknown option --lr"),
    ],
)
def test_wrong_options_and_data(task, options, expected, data, folder, tmp_path, capsys):
    options = [option.format(folder=folder) for option in options]
    given = () if "--data" in options or task == "food101_features" else data[task]
    output = () if task == "food101_features" else ("--output", tmp_path / "run")
    assert expected in refused(capsys, task, *given, *options, *output)
    assert not (tmp_path / "run").exists()


def test_training_on_features_never_loads_a_backbone(data, config, tmp_path):
    arguments = [*data["food101"], "--config", config(1), "--output", tmp_path / "run"]
    code = (
        "import sys\n"
        "from pipelines import food101_train\n"
        f"food101_train.main({[str(argument) for argument in arguments]})\n"
        "assert 'cggm_cls.data.food101.store' in sys.modules\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert (tmp_path / "run" / "results.json").exists()
