import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cggm.errors import UserError
from cggm.reports.tasks import find_task, load_tasks
from cggm.runs.metrics import Metric, register_metrics
from tests.quantifiers import every

TABLE = Path(__file__).parents[3] / "configs" / "tasks.yaml"


def table(folder, text):
    (folder / "tasks.yaml").write_text(text)
    return folder / "tasks.yaml"


def test_all_that_the_table_of_the_project_names_is_there():
    tasks = load_tasks(TABLE)
    assert list(tasks) == [
        *("brats", "mosi", "iemocap", "food101", "mfeat", "htad", "arrays"),
    ]
    for task in tasks.values():
        assert task.script.is_file()
        assert task.quick.is_file()
        assert callable(task.load_report())
        assert [metric.name for metric in task.shown_metrics()] == list(task.metrics)
        assert every(importlib.import_module(name) for name in task.imports)


def test_modalities_are_those_of_the_data_where_these_decide(tmp_path):
    tasks = load_tasks(TABLE)
    assert tasks["mfeat"].of_data(tmp_path) == tasks["mfeat"]
    assert tasks["arrays"].of_data(None).modalities == ("signal", "table")
    np.save(tmp_path / "lab.npy", np.zeros((3, 1)))
    np.save(tmp_path / "ecg.npy", np.zeros((3, 1)))
    np.save(tmp_path / "target.npy", np.array([0.5, 1, 2]))
    described = tasks["arrays"].of_data(tmp_path)
    assert (described.modalities, described.metrics) == (("ecg", "lab"), ("mae", "rmse", "r2"))
    np.save(tmp_path / "target.npy", np.array(["a", "b", "a"]))
    assert tasks["arrays"].of_data(tmp_path).metrics == ("acc", "f1_macro")
    with pytest.raises(UserError, match="Expected a folder, but there is none"):
        tasks["arrays"].of_data(tmp_path / "nowhere")
    wrong = replace(tasks["arrays"], described_by="nowhere:f")
    with pytest.raises(UserError, match="expected `described_by` to be module:function"):
        wrong.of_data(None)


def test_paths_are_relative_to_the_table(tmp_path):
    file = table(tmp_path, "mine: {script: t/go.py, modalities: [a], metrics: [m], quick: q.yaml}")
    (task,) = load_tasks(file).values()
    assert task.script == tmp_path / "t" / "go.py"
    assert task.quick == tmp_path / "q.yaml"
    assert task.load_report() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected tasks by name"),
        ("mine: {script: a.py}", "task mine: missing, .* modalities, metrics"),
        ("mine: 3", "script, modalities, metrics"),
        ("mine: {script: a.py, modalities: [a], metrics: [m], scrpt: b}", "scrpt"),
        ("mine: {script: a.py, modalities: a, metrics: [m]}", "modalities"),
        ("../up: {script: a.py, modalities: [a], metrics: [m]}", "its name"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_tasks(table(tmp_path, text))


@pytest.mark.parametrize("report", ["cggm.no_such:f", "cggm.reports:no_such", "nonsense"])
def test_a_report_that_is_not_there_is_refused(tmp_path, report):
    text = f"mine: {{script: a.py, modalities: [a], metrics: [m], report: '{report}'}}"
    (task,) = load_tasks(table(tmp_path, text)).values()
    with pytest.raises(UserError, match="expected `report` to be module:function"):
        task.load_report()


def test_unknown_tasks_and_metrics_are_refused_with_what_there_is(tmp_path):
    tasks = load_tasks(table(tmp_path, "mine: {script: a.py, modalities: [a], metrics: [odd]}"))
    with pytest.raises(UserError, match=r"Unknown task 'yours'\. Available: mine; .* --tasks"):
        find_task("yours", tasks)
    with pytest.raises(UserError, match="Unknown metric 'odd'"):
        tasks["mine"].shown_metrics()
    register_metrics(Metric("toy_known", "known", "higher"))
    (task,) = load_tasks(
        table(tmp_path, "mine: {script: a.py, modalities: [a], metrics: [toy_known]}")
    ).values()
    assert [metric.label for metric in task.shown_metrics()] == ["known"]


def test_a_task_may_stand_in_a_module_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "calls_tasks.py").write_text(
        "from pathlib import Path\n"
        "from cggm.reports import Task\n"
        "CALLS = Task('calls', Path('calls_train.py'), ('voice', 'words'), ('ece',))\n"
        "BRATS = Task('brats', Path('calls_train.py'), ('voice',), ('ece',))\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tasks = load_tasks(TABLE)
    found = find_task("calls_tasks:CALLS", tasks)
    assert (found.name, found.modalities) == ("calls", ("voice", "words"))
    assert find_task("calls_tasks:CALLS", {**tasks, "calls": found}) == found
    for name, message in {
        "calls_tasks:OTHER": "Expected calls_tasks:OTHER to be a task, but .* cannot be loaded",
        "no_such_module:CALLS": "cannot be loaded: No module named 'no_such_module'",
        "calls_tasks:NUMBER": "to be a cggm.reports.Task of a new name, but it is int",
        "calls_tasks:BRATS": "of a new name, but it is a task named brats",
        "calls_tasks:": "cannot be loaded",
        ":CALLS": "cannot be loaded",
    }.items():
        with pytest.raises(UserError, match=message):
            find_task(name, tasks)
