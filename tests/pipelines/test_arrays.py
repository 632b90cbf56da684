"""Folders of arrays, from the data to a comparison and an exported model, without code."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from cggm.runs.cli import run
from cggm_cls.data.arrays import load_array_folder
from cggm_cls.data.packaged import load_htad
from pipelines import compare
from tests.documents import PAGES, ROOT, blocks, commands
from tests.pipelines.commands import call, refused
from tests.quantifiers import every

PAGE = PAGES["docs/arrays.md"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders that the page has its reader write: UCI Multiple Features and HTAD."""
    place = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        names = {}
        for _, code in blocks(PAGE, "python"):
            exec(code, names)
    return place


def process(folder, script, arguments):
    """Runs a command of the page in a process of its own."""
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_leads_from_four_arrays_to_a_comparison_and_a_model(folders):
    (train, *one), (compared, *two), (exported, *three) = list(commands(PAGE))[:3]
    shown = process(folders, train, [*one[0], "--max_epochs", "4"])
    assert "fou (76 features) of fou.npy, kar (64 features) of kar.npy" in shown
    assert "fou+kar+mor" in shown, "subsets"
    results = json.loads((folders / "run" / "results.json").read_text())
    assert results["test"]["acc"] > 0.9, "after four epochs, of ten classes"
    assert "Calibration" in (folders / "run" / "report.html").read_text()

    assert two[0][two[0].index("--methods") + 1] == "unimodal,joint,cggm"
    told = dict(zip(two[0][::2], two[0][1::2], strict=True))
    told |= {"--methods": "joint,cggm", "--seeds": "1", "--max_epochs": "1", "--device": "cpu"}
    process(folders, compared, [word for pair in told.items() for word in pair])
    table = (folders / "comparison" / "tables" / "arrays-performance.md").read_text()
    assert "accuracy" in table
    assert "absolute error" not in table, "metrics of numbers"
    assert (folders / "comparison" / "report.html").is_file()

    process(folders, exported, three[0])
    _predicts_the_same(folders)


def _predicts_the_same(folders):
    """The exported model on the arrays as they are, beside what the training kept."""
    split = load_array_folder(folders / "digits", standardize=False).test
    session = onnxruntime.InferenceSession(folders / "run" / "export" / "onnx" / "model.onnx")
    given = {}
    for name, sequence in split.batch(range(len(split)))["inputs"].items():
        given |= {name: sequence.values.numpy(), f"{name}.mask": sequence.mask.numpy()}
    [logits] = session.run(["logits"], given)
    kept = np.load(folders / "run" / "predictions.npz")
    np.testing.assert_allclose(logits, kept["prediction"], atol=1e-3)
    assert np.array_equal(split.target.numpy(), kept["target"])


def test_htad_as_a_folder_is_what_its_own_command_trains_on(folders):
    assert load_array_folder(folders / "activities").digest == load_htad(None, seed=0).digest


def test_numbers_as_targets_are_compared_by_their_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    rng = np.random.default_rng(0)
    target = rng.standard_normal(80)
    np.save("own/lab.npy", rng.standard_normal((80, 3)) + target[:, None])
    np.save("own/age.npy", rng.standard_normal((80, 1)))
    np.save("own/target.npy", target)
    given = ("--task", "arrays", "--data", "own", "--methods", "unimodal,joint", "--config", "mlp")
    more = ("--seeds", "1", "--max_epochs", "1", "--output", "comparison", "--device", "cpu")
    code = run(compare.main, [*given, *more])
    assert code == 0, capsys.readouterr().err
    table = (tmp_path / "comparison" / "tables" / "arrays-performance.md").read_text()
    assert every(text in table for text in ("mean absolute error", "explained variance R2"))
    assert every(text in table for text in ("unimodal_age", "unimodal_lab", "joint"))
    assert "accuracy" not in table


def test_samples_that_lack_a_modality_train_and_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    rng = np.random.default_rng(0)
    target = rng.integers(2, size=80)
    lab = rng.standard_normal((80, 3)) + target[:, None]
    lab[::4] = np.nan
    np.save("own/lab.npy", lab)
    np.save("own/ecg.npy", rng.standard_normal((80, 5, 2)))
    np.save("own/target.npy", target)
    given = ("--data", "own", "--output", "run", "--config", "mlp", "--max_epochs", "1")
    assert "20 steps or rows" in refused(capsys, "arrays", *given)
    assert call("arrays", *given, "--missing", "absent") == 0, capsys.readouterr().err
    assert "20 steps or rows of lab held NaN or infinite values" in capsys.readouterr().out
    with open("absent.yaml", "w") as file:
        file.write("missing: absent\nnetwork: {kind: mlp}\n")
    told = ("--task", "arrays", "--data", "own", "--config", "absent.yaml", "--max_epochs", "1")
    more = ("--methods", "cggm,opm", "--seeds", "1", "--output", "comparison", "--device", "cpu")
    assert run(compare.main, [*told, *more]) == 0, capsys.readouterr().err
    page = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "opm: OPM cannot leave out a modality that samples lack." in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.npz", {"lab": [[1.0]], "target": [1]}, "valid.npz beside the other splits"),
        ("id.npy", np.arange(7), "samples, as many as identifiers"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_message(name, content, message, tmp_path, capsys):
    np.save(tmp_path / "lab.npy", np.zeros((8, 2)))
    np.save(tmp_path / "target.npy", np.arange(8) % 2)
    (np.savez if name.endswith("z") else np.save)(
        tmp_path / name, **(content if name.endswith("z") else {"arr": content})
    )
    assert message in refused(capsys, "arrays", "--data", tmp_path, "--output", tmp_path / "run")
