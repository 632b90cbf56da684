import ast
import json
import signal
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cggm.runs.watch.logs import read_jsonl
from cggm_seg.data.cases import MODALITIES
from tests.cggm_seg.nifti import case_file, write_case
from tests.pipelines.commands import ROOT, call, left_over, start, tiny_config
from tests.quantifiers import every

SHAPE = (48, 40, 20)
EPOCHS = 4
NAMINGS = ("2021", "2023")
FIGURES = {"score", "raw_term", "term", "gate", "cosine", "head_loss", "gradient_norm"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for k in range(6):
        write_case(folder, f"case{k}", shape=SHAPE, naming=NAMINGS[k % 2], seed=k)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("config"), EPOCHS)


@pytest.fixture(scope="module")
def killed(cohort, config, tmp_path_factory):
    """A run whose process was killed after its second epoch, and what it had printed."""
    run = tmp_path_factory.mktemp("killed") / "run"
    argv = ("--data", cohort, "--config", config, "--output", run, "--workers", 1)
    process = start("train", *argv)
    while not [*run.glob("checkpoints/epoch-0002-*")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return run, out, err


@pytest.fixture(scope="module")
def resumed(killed):
    run, _, _ = killed
    assert not [*run.glob("checkpoints/epoch-0004-*")]
    assert call("train", "--resume", run) == 0
    return run


@pytest.fixture(scope="module")
def whole(cohort, config, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("train", "--data", cohort, "--config", config, "--output", run) == 0
    return run


def weights(run, epoch=EPOCHS):
    return load_file(next(run.glob(f"checkpoints/epoch-{epoch:04d}-*")) / "model.safetensors")


def figures(line):
    return {name for name, value in line.items() if isinstance(value, dict)}


def test_run_leaves_everything_that_it_promises(whole):
    for name in ("config.yaml", "environment.json", "split.json", "curves/curves.png"):
        assert (whole / name).stat().st_size > 100
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))
    assert {p.stem for p in (whole / "curves").glob("*.png")} >= {"score", "term", "cosine"}
    assert len(list((whole / "checkpoints").iterdir())) <= 3  # the best one and the last two
    split = json.loads((whole / "split.json").read_text())
    assert (len(split["training"]), len(split["validation"])) == (5, 1)
    subsets = json.loads((whole / "subsets.json").read_text())
    assert len(subsets) == 15
    assert list(subsets["t1ce+t2"]) == ["dice_ET", "dice_TC", "dice_WT", "dice_mean"]
    assert left_over(whole) == []


def test_every_iteration_and_epoch_is_logged(whole):
    balance, metrics = read_jsonl(whole / "balance.jsonl"), read_jsonl(whole / "metrics.jsonl")
    assert [line["iteration"] for line in balance] == [*range(1, 2 * EPOCHS + 1)]
    assert [line["epoch"] for line in metrics] == [*range(1, EPOCHS + 1)]
    for line in balance:
        assert figures(line) == FIGURES
        assert every(tuple(line[name]) == MODALITIES for name in FIGURES)
        assert every(norm > 0 for norm in line["gradient_norm"].values())
    assert metrics[-1]["lr"] == 1e-3
    assert {"train_loss", "val_dice_WT", "val_dice_mean"} <= set(metrics[-1])


def test_piped_output_is_plain_lines(killed):
    _, out, err = killed
    words = [line.split()[0] for line in out.splitlines()]
    assert words == ["data", "network", "method", "page", "output"]
    assert "5 cases for training, 1 for validation" in out
    first, second, *_ = err.splitlines()  # then a loader that lost its process
    assert first.startswith("epoch 1/4, step 2/8, loss ")
    assert second.startswith("epoch 2/4, step 4/8, loss ")


def test_killed_and_resumed_run_equals_one_that_was_left_alone(resumed, whole):
    expected = weights(whole)
    assert every(torch.equal(value, expected[key]) for key, value in weights(resumed).items())
    assert weights(resumed).keys() == expected.keys()
    for log in ("metrics.jsonl", "balance.jsonl"):
        assert read_jsonl(resumed / log) == read_jsonl(whole / log)
    assert left_over(resumed) == []


def test_resuming_a_finished_run_trains_no_further(resumed, capsys):
    before = weights(resumed)
    assert call("train", "--resume", resumed, "--subsets", "false") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "resumed  after epoch 4 of 4" in printed.out
    assert every(torch.equal(value, before[key]) for key, value in weights(resumed).items())
    assert len(read_jsonl(resumed / "balance.jsonl")) == 2 * EPOCHS


def test_model_file_holds_the_network_alone(whole):
    assert {key.split(".")[0] for key in weights(whole)} == {"encoders", "decoder", "output_layer"}
    training = torch.load(
        next(whole.glob("checkpoints/epoch-0004-*")) / "training.pt", weights_only=True
    )
    assert any("heads" in key for key in training["parts"]["balancer"])


def test_predictions_are_label_maps_on_the_grid_of_the_case(whole, cohort, tmp_path, capsys):
    output = tmp_path / "predictions"
    assert call("infer", "--model", whole, "--input", cohort, "--output", output) == 0
    printed = capsys.readouterr()
    assert printed.out == f"6 label maps in {output}\n"
    assert "5 of these 6 cases were in its training" in printed.err
    assert printed.err.count("\n") == 1
    for k in range(6):
        prediction = nib.load(output / f"case{k}.nii.gz")
        image = nib.load(case_file(cohort, f"case{k}", "t1", NAMINGS[k % 2]))
        assert prediction.get_data_dtype() == np.uint8
        assert set(np.unique(prediction.dataobj)) <= {0, 1, 2, 4 - k % 2}
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)

    results = tmp_path / "results" / "scores.json"
    argv = ("--predictions", output, "--reference", cohort, "--output", results)
    assert call("evaluate", *argv) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    scores = json.loads(results.read_text())
    assert sorted(scores["rows"]) == [f"case{k}" for k in range(6)]
    assert scores["missing"] == scores["problems"] == []
    means = [row["dice_WT"] for row in scores["rows"].values()]
    assert scores["statistics"]["mean"]["dice_WT"] == pytest.approx(np.mean(means))
    assert f"{np.mean(means):.3f}" in printed.out
    assert left_over(tmp_path) == []


def test_case_without_a_modality_is_predicted_with_a_warning(whole, tmp_path, capsys):
    write_case(tmp_path / "in", "a", shape=SHAPE, label=False)
    case_file(tmp_path / "in", "a", "t1").unlink()
    argv = ("--model", whole, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert call("infer", *argv) == 0
    printed = capsys.readouterr()
    assert printed.out == f"1 label map in {tmp_path / 'out'}\n"
    assert printed.err == "a: no t1, replaced by zeros.\n"
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_joint_training_with_heads_is_joint_training(cohort, tmp_path):
    config = tiny_config(tmp_path)
    for method in ("joint", "plain"):
        argv = ("--data", cohort, "--config", config, "--method", method, "--subsets", "false")
        assert call("train", *argv, "--output", tmp_path / method) == 0
    joint, plain = weights(tmp_path / "joint", 1), weights(tmp_path / "plain", 1)
    assert every(torch.equal(value, plain[key]) for key, value in joint.items())
    balances = [read_jsonl(tmp_path / method / "balance.jsonl") for method in ("joint", "plain")]
    assert [line["loss"] for line in balances[0]] == [line["loss"] for line in balances[1]]
    for balance, expected in zip(balances, (FIGURES, {"gradient_norm"}), strict=True):
        assert [figures(line) for line in balance] == [expected] * 2


def test_paper_method_from_a_file_that_names_the_data(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path)
    config.write_text(f"{config.read_text()}\ndata: {cohort}\n")
    assert call("train", "--config", config, "--method", "cggm_paper", "--subsets", "false") == 0
    [run] = (tmp_path / "runs").glob("brats-20*")
    last = read_jsonl(run / "balance.jsonl")[-1]
    assert last["term"] == last["raw_term"] != dict.fromkeys(MODALITIES, 1.0)
    assert sum(last["term"].values()) == pytest.approx(3, rel=1e-3)
    # Below such a file lies the paper's recipe, not the demo's.
    assert yaml.safe_load((run / "config.yaml").read_text())["network"]["aspp_dropout"] == 0.5


def test_inference_reaches_no_head_and_no_method():
    reached = imports_of(ROOT / "pipelines" / "brats_infer.py")
    assert {
        "cggm_seg.networks.deeplab",
        "cggm_seg.inference.slices",
        "cggm.runs.checkpoints.save",
    } <= reached
    assert not [name for name in reached if "head" in name or name.startswith("cggm.methods")]


def homes_of(node):
    """The modules that the names of an import live in: a package's stub tells of its face."""
    stub = ROOT / (node.module or "").replace(".", "/") / "__init__.pyi"
    if not stub.exists():
        return {node.module}
    names = {alias.name for alias in node.names}
    lines = [n for n in ast.parse(stub.read_text()).body if type(n) is ast.ImportFrom]
    return {f"{node.module}.{n.module}" for n in lines if names & {a.name for a in n.names}}


def imports_of(file, seen=frozenset()):
    """Modules of the project that a file imports, at the top or in a function, and so on."""
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if type(n) is ast.ImportFrom]
    modules = {home for node in nodes for home in homes_of(node)}
    found = {name for name in modules - seen if name.partition(".")[0] in ("cggm", "cggm_seg")}
    for name in found:
        source = ROOT / f"{name.replace('.', '/')}.py"
        seen = imports_of(source, seen | {name}) if source.exists() else seen | {name}
    return seen
