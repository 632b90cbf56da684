"""ONNX models of trainings on sequences: inputs as in the data, and what is refused."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm_cls.data.arrays.load import load_array_folder
from cggm_cls.export import export_sequences
from cggm_cls.training.assembly import SequenceTraining
from cggm_cls.training.config import SequenceConfig, SequenceNetworkConfig

SMALL = SequenceNetworkConfig(kind="mlp", width=8, attention_heads=2, encoder_layers=1)


def raw(folder):
    """Two modalities far from 0 and 1, one of them cut into steps, and numbers as targets."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    target = rng.standard_normal(60)
    np.save(folder / "lab.npy", 1e4 + 100 * rng.standard_normal((60, 6)) + target[:, None])
    np.save(folder / "ecg.npy", -30 + rng.standard_normal((60, 4, 2)).astype(np.float32))
    np.save(folder / "ecg.lengths.npy", rng.integers(1, 5, 60))
    np.save(folder / "y.npy", target)
    (folder / "dataset.yaml").write_text(
        "modalities:\n  lab: {file: lab.npy, steps: 3}\n"
        "  ecg: {file: ecg.npy, lengths: ecg.lengths.npy}\ntarget: {at: y.npy, kind: numbers}\n"
    )
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    data = load_array_folder(raw(folder / "own"))
    config = SequenceConfig(max_epochs=2, batch_size=16, network=SMALL)
    run = RunFolder(folder / "run")
    SequenceTraining(config, run, data, torch.device("cpu")).run()
    export_sequences(run, "onnx", folder / "onnx")
    return folder


def test_the_model_takes_the_arrays_as_they_were(finished):
    split = load_array_folder(finished / "own", standardize=False).test
    given = split.batch(range(len(split)))["inputs"]
    session = onnxruntime.InferenceSession(finished / "onnx" / "model.onnx")
    arrays = {}
    for name, sequence in given.items():
        arrays |= {name: sequence.values.numpy(), f"{name}.mask": sequence.mask.numpy()}
    assert arrays["lab"].shape[1:] == (3, 2)
    assert arrays["lab"].mean() > 9e3
    [values] = session.run(["values"], arrays)
    kept = np.load(finished / "run" / "predictions.npz")
    expected = next(kept[name] for name in kept.files if name.startswith("pred"))
    # Single precision of 1e4 with a deviation of 100 is good to 1e-5 of it.
    assert values == pytest.approx(expected, abs=1e-3)


def test_the_card_says_what_goes_in(finished):
    card = json.loads((finished / "onnx" / "model.json").read_text())
    assert card["order"] == ["lab", "lab.mask", "ecg", "ecg.mask"]
    assert card["inputs"]["lab"]["scaled inside"]
    assert card["output"] == "values"
    assert set(card["test"]) == {"mae", "rmse", "r2", "corr"}
    listed = (finished / "onnx" / "SHA256SUMS").read_text().split()
    assert listed[1::2] == ["model.json", "model.onnx"]


def test_what_cannot_be_exported_is_one_message(finished, tmp_path, monkeypatch):
    run = RunFolder(finished / "run")
    with pytest.raises(UserError, match="expected no export there yet"):
        export_sequences(run, "onnx", finished / "onnx")
    with pytest.raises(UserError, match="a finished run whose results say what"):
        export_sequences(RunFolder(tmp_path), "onnx", tmp_path / "onnx")
    with pytest.raises(UserError, match=r"Expected --to onnx .*, but got --to torch"):
        export_sequences(run, "torch", tmp_path / "torch")
    monkeypatch.setattr("cggm_cls.export.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'onnxruntime cannot be found.*"cggm\[cls,export\]"'):
        export_sequences(run, "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
