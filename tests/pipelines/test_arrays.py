"""A folder of arrays, from the data to a comparison, without code."""

import json

import numpy as np
import pytest

from cggm.runs.cli import run
from cggm_cls.data.packaged import load_mfeat
from pipelines import compare
from tests.documents import PAGES, blocks
from tests.pipelines.commands import call, refused


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """UCI Multiple Features written out as somebody's arrays."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_mfeat(None, views=("fou", "mor"), seed=0)
    for split, part in {"train": data.train, "valid": data.valid, "test": data.test}.items():
        arrays = {
            name: sequences.values.reshape(len(part), -1, sequences.width).numpy()
            for name, sequences in part.inputs.items()
        }
        arrays["mor"] = arrays["mor"][:, 0]
        np.savez(folder / f"{split}.npz", target=part.target.numpy(), **arrays)
    return folder


def test_real_digits_in_archives_are_learnt(digits, tmp_path, capsys):
    given = ("--data", digits, "--output", tmp_path / "run", "--max_epochs", 2, "--threads", 1)
    assert call("arrays", *given) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"] == [str(number) for number in range(10)]
    assert results["test"]["acc"] > 0.4, "after two epochs, of ten classes"
    assert not results["simulated"]
    assert "Calibration" in (tmp_path / "run" / "report.html").read_text()


def test_the_page_leads_to_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [(_, code)] = blocks(PAGES["docs/sequences.md"], "python")
    exec(code, {})
    given = ("--task", "arrays", "--data", "own", "--methods", "joint,cggm", "--seeds", "2")
    more = ("--max_epochs", "1", "--output", "comparison", "--device", "cpu")
    assert run(compare.main, [*given, *more]) == 0, capsys.readouterr().err
    table = (tmp_path / "comparison" / "tables" / "arrays-performance.md").read_text()
    assert "accuracy" in table
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_numbers_as_targets_are_compared_by_their_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    rng = np.random.default_rng(0)
    target = rng.standard_normal(80)
    np.save("own/lab.npy", rng.standard_normal((80, 3)) + target[:, None])
    np.save("own/age.npy", rng.standard_normal((80, 1)))
    np.save("own/target.npy", target)
    given = ("--task", "arrays_regression", "--data", "own", "--methods", "joint,ogm")
    more = ("--seeds", "2", "--max_epochs", "1", "--output", "comparison", "--device", "cpu")
    code = run(compare.main, [*given, *more])
    assert code == 0, capsys.readouterr().err
    table = (tmp_path / "comparison" / "tables" / "arrays_regression-performance.md").read_text()
    assert "mean absolute error" in table
    assert "explained variance R2" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "test.npz").unlink(), "test.npz beside the other splits"),
        (lambda folder: np.savez(folder / "valid.npz", target=[1]), "at least one modality"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_message(change, message, digits, tmp_path, capsys):
    folder = tmp_path / "own"
    folder.mkdir()
    for file in digits.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    assert message in refused(capsys, "arrays", "--data", folder, "--output", tmp_path / "run")
