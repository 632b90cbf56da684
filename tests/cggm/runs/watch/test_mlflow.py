"""Runs in MLflow's own store, read back through its client."""

import json
import socket
import sys

import pytest

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.loop.signals import Stopped
from cggm.runs.watch.mlflow import MLflowLog, require_mlflow
from tests.cggm.runs.schema import Config


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install \"cggm\[mlflow\]\""):
        require_mlflow()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    return RunFolder(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder that all tests log to, because its database takes seconds to make."""
    mlflow = pytest.importorskip("mlflow")
    yield tmp_path_factory.mktemp("store") / "tracking"
    mlflow.set_tracking_uri(None)


@pytest.fixture
def log(run, store, monkeypatch):
    """Opens the log of a run."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = Config(max_epochs=3, balancer="joint", arguments={"rho": 0.5})
    return lambda to=store: MLflowLog(str(to), run, config)


def saved(run):
    """The run as MLflow keeps it, and its losses by epoch."""
    import mlflow

    known = json.loads((run.path / "mlflow.json").read_text())
    client = mlflow.MlflowClient(known["tracking_uri"])
    losses = client.get_metric_history(known["run_id"], "loss")
    return client.get_run(known["run_id"]), [(metric.step, metric.value) for metric in losses]


def interrupted(log, record, error):
    with log:
        log.write(record, step=1)
        raise error


def test_resumed_run_continues_the_same_run(log, run, store, capfd):
    record = {"epoch": 1, "loss": 2.0, "term": {"t1": 0.5}, "note": "x"}
    with pytest.raises(Stopped):
        interrupted(log(), record, Stopped(15, "step 1", run.path))
    assert saved(run)[0].info.status == "KILLED"
    with log() as second:
        assert saved(run)[0].info.status == "RUNNING"
        second.write({"epoch": 2, "loss": 1.0}, step=2)
    found, losses = saved(run)
    assert losses == [(1, 2.0), (2, 1.0)]
    assert found.data.metrics["term/t1"] == 0.5
    assert "note" not in found.data.metrics
    assert (found.info.status, found.info.run_name) == ("FINISHED", "my-run")
    assert found.data.params["arguments.rho"] == "0.5"
    assert found.data.params["data_options.crop"] == "(160, 160)"
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in store.iterdir()] == ["mlflow.db"]


def test_failed_run_is_marked(log, run):
    with pytest.raises(ZeroDivisionError):
        interrupted(log(), {}, ZeroDivisionError())
    assert saved(run)[0].info.status == "FAILED"


def test_server_that_does_not_answer_is_refused_at_the_start(log, run):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        where = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"--mlflow {where} cannot be used: "):
            log(where)
    assert list(run.path.iterdir()) == []


def test_training_goes_on_without_a_store_that_fails(log, run, capsys):
    import mlflow

    with log() as failing:
        known = saved(run)[0].info.run_id
        mlflow.delete_run(known)
        failing.write({"loss": 1.0}, step=1)
        failing.write({"loss": 1.0}, step=2)
    said = capsys.readouterr().err
    assert said.count("the run goes on without it") == 1
    assert known in said
    assert mlflow.active_run() is None  # so that the next training of this process has its own
