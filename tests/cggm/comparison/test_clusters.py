"""Jobs of a cluster without one: what each gets, what is handed in, and gathered"""

import json
import sys

import pytest

from cggm.comparison import clusters
from cggm.comparison.clusters import ClusterQueue, Job
from cggm.comparison.plan import JobOptions, Plan
from cggm.comparison.records import RecordStore
from cggm.comparison.trainings import ComparisonProgress
from cggm.errors import UserError
from cggm.reports import Task

SCRIPT = """
import json, os, sys
from pathlib import Path
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(told.get("--output") or told["--resume"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
count = folder / "count"
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
if "--resume" not in told and "ogm" in sys.argv:
    (folder / "checkpoints" / "epoch-0001").mkdir(parents=True)
    sys.exit("killed here")
(folder / "results.json").write_text(json.dumps({"test": {"acc": 0.5}}))
"""


@pytest.fixture
def planned(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    task = Task("mine", script, ("a", "b"), ("acc",))
    configs = clusters.__file__.replace("cggm/comparison/clusters.py", "configs")
    runs = Plan((task,), ("joint", "ogm"), (0, 1)).runs(type(tmp_path)(configs))
    output = tmp_path / "comparison"
    output.mkdir()
    return runs, RecordStore(output)


def queue(store, runs, launcher="submitit-debug", **options):
    progress = ComparisonProgress(runs, len(store.pending(runs)))
    return ClusterQueue(store, launcher, JobOptions(**options), progress)


def test_jobs_run_one_after_another_and_what_failed_goes_on_next_time(planned, capsys):
    runs, store = planned
    failed = queue(store, runs, cpus=3).run(runs)
    assert sorted((o.run.method, o.run.seed, o.message) for o in failed) == [
        ("ogm", 0, "killed here"),
        ("ogm", 1, "killed here"),
    ]
    assert [(r.method, r.seed) for r in store.records(runs)] == [("joint", 0), ("joint", 1)]
    said = capsys.readouterr().out
    assert "3 queued, 0 running, 1 of 4 finished\n" not in said.splitlines()[0]
    assert "1 queued, 0 running, " in said
    assert {f.read_text() for f in store.output.rglob("threads")} == {"3"}

    assert queue(store, runs).run(runs) == []
    assert [(r.method, r.seed) for r in store.records(runs)] == [run.key[1:] for run in runs]
    resumed = [r for r in store.records(runs) if r.method == "ogm"]
    assert [r.seconds for r in resumed] == [None, None]
    counts = [(run.folder(store.output) / "count").read_text() for run in runs]
    assert dict(zip([r.key[1:] for r in runs], counts, strict=True)) == {
        ("joint", 0): "1",
        ("joint", 1): "1",
        ("ogm", 0): "2",
        ("ogm", 1): "2",
    }
    assert not list(store.output.rglob("*.ended.json"))


class Submitted:
    """What stands in for submitit's executor: jobs have numbers, and run when they are told to."""

    def __init__(self):
        self.arrays, self.parameters = [], {}

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def submit_array(self, jobs):
        number = 10 * (len(self.arrays) + 1)
        self.arrays.append((jobs, self.parameters))
        return [type("J", (), {"job_id": f"{number}_{k}"})() for k in range(len(jobs))]


@pytest.fixture
def slurm(monkeypatch):
    submitted = Submitted()
    monkeypatch.setattr(clusters, "_executor", lambda *_: submitted)
    monkeypatch.setattr(clusters, "_POLL", 0)
    return submitted


def test_second_command_gathers_and_hands_in_what_has_no_job(planned, slurm, monkeypatch, capsys):
    runs, store = planned
    first, second, third, last = runs
    now = {"7_0": "queued", "7_1": "running"}
    (store.output / "jobs.jsonl").write_text(
        "".join(
            json.dumps(dict(zip(("task", "method", "seed", "job"), (*run.key, job), strict=True)))
            + "\n"
            for run, job in ((first, "7_0"), (second, "7_1"), (third, "7_2"), (last, "7_3"))
        )
    )
    Job(third, store.output, 1)()  # ended while nobody looked

    def look():
        if not slurm.arrays:
            return dict(now)
        calls.append(1)
        if len(calls) == 2:
            Job(first, store.output, 1)()
        return [{**now, "10_0": "queued"}, {"7_1": "running", "10_0": "running"}, {}, {}][
            min(len(calls), 4) - 1
        ]

    calls = []
    monkeypatch.setattr(clusters, "_slurm_jobs", look)
    failed = queue(store, runs, "slurm", partition="gpu", gpus=1, memory=1.5).run(runs)
    assert [[job.run for job in jobs] for jobs, _ in slurm.arrays] == [[last]]
    [(_, parameters)] = slurm.arrays
    assert parameters == {
        "name": "cggm",
        "timeout_min": 240,
        "cpus_per_task": 1,
        "slurm_signal_delay_s": 90,
        "slurm_partition": "gpu",
        "mem_gb": 1.5,
        "gpus_per_node": 1,
        "slurm_array_parallelism": 1,
    }
    assert {r.key for r in store.pending(runs)} == {second.key, last.key}
    assert [o.run for o in failed] == [second, last]  # their jobs are gone without a word
    assert "canceled" in failed[0].message
    said = capsys.readouterr().out
    assert "2 queued, 1 running, 1 of 4 finished\n" in said
    assert "0 queued, 2 running, 2 of 4 finished\n" in said


def test_data_are_prepared_by_the_first_training_of_a_task(planned, slurm, monkeypatch):
    runs, store = planned
    monkeypatch.setattr(clusters, "_slurm_jobs", dict)
    queue(store, runs, "slurm").run(runs)
    (first, _), (rest, parameters) = slurm.arrays
    assert [job.run for job in first] == runs[:1]
    assert [job.run for job in rest] == runs[1:]
    assert parameters["slurm_additional_parameters"] == {"dependency": "afterany:10"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"minutes": 0}, "cluster.minutes of at least 1"),
        ({"gpus": -1}, "cluster.gpus of at least 0"),
        ({"memory": 0}, "cluster.memory greater than 0"),
    ],
)
def test_wrong_options(options, expected):
    with pytest.raises(UserError, match=expected):
        JobOptions(**options)


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not there"):
        clusters._executor(tmp_path, "slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"cggm\[cluster\]"):
        clusters._executor(tmp_path, "slurm")
