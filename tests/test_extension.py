"""What the how-tos promise: a data set, a method or a metric of one's own edits no list."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cggm_cls.data
from cggm import runs
from cggm.runs.cli import run
from pipelines import compare
from tests.documents import PAGES, ROOT, blocks
from tests.quantifiers import every


def written_as_the_how_to_says(folder):
    """The files of the how-to on data sets; the methods are those of the project."""
    text = PAGES["docs/howto/other_data.md"].partition("## Sequences and feature vectors")[2]
    (_, reader), (_, script), _ = blocks(text, "python")
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


@pytest.fixture
def measured(ecg):
    """The data set with a reader that brings the metric of the how-to."""
    main, data = ecg
    _, metric = blocks(PAGES["docs/howto/other_data.md"], "python")[-1]
    reader = Path("readers/ecg.py")
    splits = "TaskData(**splits, "
    text = reader.read_text()
    assert splits in text
    reader.write_text(text.replace(splits, f"{splits}own_measure=measure, ") + "\n" + metric)
    yield main, data
    runs.metrics._known.pop("found_sick", None)


def test_a_metric_shows_in_files_terminal_and_report_from_its_record_alone(measured, capsys):
    main, data = measured
    given = ["--data", str(data), "--output", "run", "--max_epochs", "6", "--threads", "1"]
    assert run(main, given) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    results = json.loads(Path("run/results.json").read_text())
    # Sick patients are rows 1, 3, ... of the test split, of class 1.
    with np.load("run/predictions.npz") as kept:
        found = (kept["prediction"].argmax(1) == 1)[1::2]
    assert results["test"]["found_sick"] == pytest.approx(100 * found.mean())
    assert every("found_sick" in row for row in (*results["subsets"].values(),))
    assert every("found_sick" in row for row in results["heads"].values())
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert "val_found_sick" in first
    assert "sick patients found (%)" in told
    page = Path("run/report.html").read_text()
    assert "<dt>sick patients found</dt>" in page
    assert page.count("sick patients found (%)") >= 2, "subsets and heads"


def test_tables_of_a_comparison_show_a_metric_of_a_data_set(measured, tmp_path):
    _, data = measured
    Path("tasks.yaml").write_text(
        "ecg:\n  script: pipelines/ecg_train.py\n  modalities: [ecg, lab]\n"
        "  metrics: [found_sick, acc]\n  report: cggm_cls.reports:write_sequence_report\n"
    )
    Path("sitecustomize.py").write_text(
        "import cggm_cls.data\ncggm_cls.data.__path__.append('readers')\n"
    )
    options = ["--task", "ecg", "--methods", "joint,cggm", "--seeds", "2", "--max_epochs", "1"]
    options += ["--data", str(data), "--device", "cpu", "--output", "comparison"]
    done = subprocess.run(
        [sys.executable, compare.__file__, "--tasks", "tasks.yaml", *options],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = Path("comparison/tables/ecg-performance.md").read_text()
    assert "sick patients found (%)" in table
    assert "cggm" in table


def test_a_measure_without_the_metric_that_selects_is_refused(measured, capsys):
    main, data = measured
    reader = Path("readers/ecg.py")
    line = "        **classification_metrics(prediction, target, 2),\n"
    assert line in reader.read_text()
    reader.write_text(reader.read_text().replace(line, ""))
    given = ["--data", str(data), "--output", "run", "--max_epochs", "1", "--threads", "1"]
    assert run(main, given) == 2
    assert "Expected acc, which selects the checkpoint" in capsys.readouterr().err


@pytest.fixture
def method():
    """The class of the how-to, as the text of a module."""
    return blocks(PAGES["docs/howto/new_method.md"], "python")[0][1]


def test_a_method_from_anywhere_trains_by_its_path(ecg, method, monkeypatch, capsys):
    main, data = ecg
    Path("my_methods.py").write_text(method)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    [(_, config)] = blocks(PAGES["docs/howto/new_method.md"], "yaml")
    Path("loss_share.yaml").write_text(config)
    given = ["--data", str(data), "--output", "run", "--max_epochs", "1", "--threads", "1"]
    assert run(main, [*given, "--config", "loss_share.yaml"]) == 0, capsys.readouterr().err
    first = json.loads(Path("run/balance.jsonl").read_text().splitlines()[0])
    assert sum(first["term"].values()) == pytest.approx(2), "1 + 0.5 (share - 1) of each of two"
    assert first["term"]["ecg"] != 1
    sys.modules.pop("my_methods")


def test_a_method_of_the_project_is_a_module_and_a_configuration(ecg, method, tmp_path):
    """In a copy of the package, where the module of the method is the one change."""
    _, data = ecg
    shutil.copytree(ROOT / "cggm", "cggm", ignore=shutil.ignore_patterns("__pycache__"))
    Path("cggm/methods/loss_share.py").write_text(f'"""Loss shares."""\n{method}')
    Path("configs/methods").unlink()  # the link to those of the project
    shutil.copytree(ROOT / "configs/methods", "configs/methods")
    settings = "balancer: {name: LossShare, settings: {weight: 0.5}}\n"
    Path("configs/methods/loss_share.yaml").write_text(settings)
    Path("sitecustomize.py").write_text(
        "import cggm_cls.data\ncggm_cls.data.__path__.append('readers')\n"
    )
    options = ["--method", "loss_share", "--max_epochs", "1", "--threads", "1", "--curves", "false"]
    done = subprocess.run(
        [sys.executable, "pipelines/ecg_train.py", "--data", data, "--output", "run", *options],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LossShare(weight=0.5)" in done.stdout
    assert "name: LossShare" in Path("run/config.yaml").read_text()
