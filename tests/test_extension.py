"""What the how-tos promise: a data set, a method or a metric of one's own edits no list."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import cggm_cls.data
from cggm.runs.cli import run
from tests.documents import PAGES, ROOT, blocks


def written_as_the_how_to_says(folder):
    """The files of the how-to on data sets; the methods are those of the project."""
    text = PAGES["docs/howto/other_data.md"].partition("## Sequences and feature vectors")[2]
    (_, reader), (_, script) = blocks(text, "python")
    [(_, config)] = blocks(text, "yaml")
    for name, content in {
        "readers/ecg.py": reader,
        "pipelines/ecg_train.py": script,
        "configs/ecg/train.yaml": config,
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    (folder / "configs/methods").symlink_to(ROOT / "configs/methods")
    return folder


def patients(folder, *, splits=(48, 24, 24)):
    """Sick patients have a raised first lead, for as long as the recording lasts."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in zip(("train", "valid", "test"), splits, strict=True):
        sick = np.arange(count) % 2
        ecg = rng.standard_normal((count, 9, 12)).astype(np.float32)
        ecg[:, :, 0] += 6 * sick[:, None]
        ecg[::3, 5:] = 0
        lab = rng.standard_normal((count, 30)).astype(np.float32)
        np.savez(folder / f"{name}.npz", ecg=ecg, lab=lab, sick=sick)
    return folder


def loaded(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ecg(tmp_path, monkeypatch):
    """The main function of a data set's script, and its data; the source stays as it is."""
    files = written_as_the_how_to_says(tmp_path)
    monkeypatch.setattr(
        cggm_cls.data, "__path__", [*cggm_cls.data.__path__, str(files / "readers")]
    )
    monkeypatch.chdir(tmp_path)
    yield loaded(files / "pipelines/ecg_train.py").main, patients(tmp_path / "ecg")
    for name in ("ecg_train", "cggm_cls.data.ecg"):
        sys.modules.pop(name, None)


def test_a_data_set_trains_with_its_reader_configuration_and_script_alone(ecg, capsys):
    main, data = ecg
    given = ["--data", str(data), "--output", "run", "--max_epochs", "6", "--threads", "1"]
    assert run(main, given) == 0, capsys.readouterr().err
    results = json.loads(Path("run/results.json").read_text())
    assert results["classes"] == ["well", "sick"]
    assert results["test"]["acc"] > 0.9
    assert set(results["subsets"]) == {"ecg", "lab"}
    assert "sick" in Path("run/report.html").read_text()
    assert "task: ecg" in Path("run/config.yaml").read_text()


def test_a_data_set_has_methods_options_and_resuming_like_the_others(ecg, capsys):
    main, data = ecg
    given = ["--data", str(data), "--output", "run", "--max_epochs", "1", "--threads", "1"]
    given += ["--method", "ogm", "--seeds", "2", "--subsets", "false", "--curves", "false"]
    assert run(main, given) == 0, capsys.readouterr().err
    assert json.loads(Path("run/summary.json").read_text())["runs"] == ["seed-0", "seed-1"]
    assert run(main, ["--resume", "run", "--max_epochs", "2"]) == 0
    assert json.loads(Path("run/seed-1/results.json").read_text())["max_epochs"] == 2
    assert run(main, ["--output", "other"]) == 2
    assert "Expected data to be a folder, but got None." in capsys.readouterr().err


def test_a_reader_finds_lengths_and_classes(ecg):
    _, folder = ecg
    from cggm_cls.data.ecg import load_ecg

    data = load_ecg(folder)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [48, 24, 24]
    batch = data.train.batch([0, 1, 3])
    assert batch["inputs"]["ecg"].mask.sum(1).tolist() == [5, 9, 5]
    assert batch["inputs"]["lab"].values.shape == (3, 1, 30)
    assert batch["target"].tolist() == [0, 1, 1]
