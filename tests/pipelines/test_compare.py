"""The comparison: trainings run once, also when it is killed, and the page that they come to."""

import errno
import fcntl
import json
import os
import re
import signal
import time

import pytest

from cggm.comparison.records import read_records
from cggm.display.tables import RENDERERS
from cggm.errors import UserError
from cggm.runs.storage.locks import check_free
from cggm.runs.watch.logs import read_jsonl
from tests.pipelines.comparing import call, start, tiny_config, wait_for
from tests.quantifiers import every

ROWS = [("plain", 0), ("joint", 0), ("plain", 1), ("joint", 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of two methods with two seeds, and the command for it without methods."""
    config = tiny_config(tmp_path_factory.mktemp("config"))
    output = tmp_path_factory.mktemp("comparison") / "made" / "here"
    command = ("--task", "mfeat", "--config", config, "--output", output)
    assert call(*command, "--methods", "plain,joint", "--seeds", 2, "--jobs", 2) == 0
    return output, command


def is_free(output):
    """Whether no process holds the lock; one that was killed lets go only when it is gone."""
    try:
        check_free(output)
        return True
    except UserError:
        return False


def test_every_training_is_a_record_with_its_cost(finished):
    output, _ = finished
    records = read_records(output / "runs.jsonl")
    assert sorted((r.method, r.seed) for r in records) == sorted(ROWS)
    assert every(r.seconds > 0 and r.peak_mb > 50 and not r.simulated for r in records)
    assert {r.method for r in records if r.heads} == {"joint"}
    for record in records:
        results = json.loads((output / record.path / "results.json").read_text())
        assert record.test["acc"] == results["test"]["acc"]
        assert "confusion" not in record.test


def test_page_tables_and_figures_are_whole(finished):
    output, _ = finished
    page = (output / "comparison.md").read_text()
    images = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert images == [f"figures/{n}.png" for n in ("mfeat-differences", "mfeat-gradients", "ranks")]
    assert every((output / image).read_bytes().startswith(b"\x89PNG\r\n") for image in images)
    names = {"mfeat-performance", "mfeat-heads", "mfeat-cost", "ranks", "verdicts"}
    made = {path.name for path in (output / "tables").iterdir()}
    assert made == {f"{name}.{suffix}" for name in names for suffix in RENDERERS}
    assert {"md", "csv", "tex"} == set(RENDERERS)
    for name in names:
        assert (output / "tables" / f"{name}.md").read_text().strip() in page
    assert page.index("| plain ") < page.index("| joint "), "not in the order of their ends"
    assert "4 trainings, seeds 0, 1, " in page
    assert "SIMULATED" not in page
    assert re.search(r"joint, pix: [+-]\d\.\d\d, with the others' [+-]\d\.\d\d", page)


def test_same_command_again_runs_nothing(finished, capsys):
    output, command = finished
    before = (output / "runs.jsonl").read_bytes()
    logs = {log: log.stat().st_mtime_ns for log in output.rglob("*.log")}
    assert call(*command, "--methods", "plain,joint", "--seeds", 2) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 trainings: 2 methods, 2 seeds, on mfeat; 0 to run\n\ntables")
    assert (output / "runs.jsonl").read_bytes() == before
    assert {log: log.stat().st_mtime_ns for log in output.rglob("*.log")} == logs


def test_without_locks_it_says_so_and_trains(finished, tmp_path, monkeypatch, capsys):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    config = finished[1][3]
    command = ("--task", "mfeat", "--config", config, "--methods", "joint", "--seeds", 1)
    assert call(*command, "--max_epochs", 1, "--output", tmp_path / "new") == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'new'}: the file system has no locks" in said
    assert len(read_records(tmp_path / "new" / "runs.jsonl")) == 1


def test_killed_comparison_goes_on_where_it_was(finished, capsys):
    output, command = finished
    before = (output / "runs.jsonl").read_text()
    more = (*command, "--methods", "plain,joint,ogm", "--seeds", 1)
    folder = output / "runs" / "mfeat" / "ogm" / "seed-0"
    process = start(*more)
    wait_for(lambda: any(folder.glob("checkpoints/epoch-0001-*")), process)
    process.kill()
    process.wait()
    assert call(*more) == 2, "the training outlived its command and still writes"
    said = capsys.readouterr().err
    assert f"a comparison (or a training that it left), process {process.pid} on" in said
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while not is_free(output):
        time.sleep(0.005)
    assert not (folder / "results.json").exists()
    assert (output / "runs.jsonl").read_text() == before
    assert call(*more) == 0
    assert "3 trainings: 3 methods, 1 seed, on mfeat; 1 to run\n" in capsys.readouterr().out
    after = (output / "runs.jsonl").read_text()
    assert after.startswith(before)
    (record,) = map(json.loads, after.removeprefix(before).splitlines())
    assert (record["method"], record["seed"], record["seconds"]) == ("ogm", 0, None)
    assert [line["epoch"] for line in read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "earlier_starts" in json.loads((folder / "environment.json").read_text())
