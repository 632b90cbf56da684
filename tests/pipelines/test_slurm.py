"""SLURM for real, on this machine: arrays of a comparison, and the documented script of ranks."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.mosi.simulation import simulate_mosi
from pipelines import compare
from tests.pipelines import slurm
from tests.pipelines.commands import ROOT
from tests.pipelines.comparing import call
from tests.quantifiers import every

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm.is_installed(), reason="apt-get install slurm-wlm munge"),
]
CONFIG = """
max_epochs: 30
batch_size: 32
subsets: false
device: cpu
save_minutes: 0
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
optimizer: {lr: 0.01, head_lr: 0.01}
"""
METHODS = ("joint", "cggm", "ogm", "unimodal_losses")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def wait_for(condition, process, seconds=900):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_array_with_a_canceled_job_equals_the_local_comparison_bit_for_bit(folder, environment):
    options = ("--task", "mosi", "--data", folder / "mosi.pkl", "--config", folder / "config.yaml")
    options += ("--methods", ",".join(METHODS), "--seeds", 2, "--jobs", 2)
    array = folder / "array"
    command = [sys.executable, compare.__file__, *map(str, options), "--launcher", "slurm"]
    command += ["--output", str(array), "--cluster.minutes", "30", "--cluster.partition", "main"]

    def started():
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    first = started()
    killed = array / "runs" / "mosi" / "cggm" / "seed-0"
    wait_for(lambda: [*killed.glob("checkpoints/epoch-*")], first)
    jobs = {(row["method"], row["seed"]): row["job"] for row in read_jsonl(array / "jobs.jsonl")}
    job = jobs["cggm", 0]
    subprocess.run(["scancel", job], env=environment, check=True)
    said, _ = first.communicate(timeout=1800)
    assert first.returncode == 1, said
    assert "8 trainings: 4 methods, 2 seeds, on mosi; 8 to run\n" in said
    assert re.search(r"\d queued, \d running, \d of 8 finished\n", said)
    assert "failed: mosi cggm seed 0: " in said
    assert "The same command tries them again.\n" in said
    steps = len(read_jsonl(killed / "balance.jsonl"))
    assert 0 < steps < 60

    second = started()
    said, _ = second.communicate(timeout=1800)
    assert second.returncode == 0, said
    assert "; 1 to run\n" in said
    assert json.loads((killed / "environment.json").read_text())["resumed_at"] > 0

    local = folder / "local"
    assert call(*options, "--output", local) == 0
    for method in METHODS:
        for seed in (0, 1):
            runs = [o / "runs" / "mosi" / method / f"seed-{seed}" for o in (array, local)]
            for name in ("metrics.jsonl", "balance.jsonl", "results.json"):
                one, two = ((run / name).read_bytes() for run in runs)
                assert one == two, (method, seed, name)
            weights = [load_file(last(run)) for run in runs]
            assert every(weights[0][key].equal(weights[1][key]) for key in weights[0])
    tables = [(o / "tables" / "mosi-performance.md").read_text() for o in (array, local)]
    assert tables[0] == tables[1]


def last(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors"


def documented(folder: Path) -> str:
    """The script of the documentation, on one node with processors, for the small training."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    [block] = re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", page, re.MULTILINE)
    text = block.replace("\n    ", "\n").strip()
    changes = {
        "--nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32": "--cpus-per-task=2",
        "24:00:00": "0:30:00",
        "/shared/run": str(folder / "run"),
        "srun python pipelines": f"srun {sys.executable} {ROOT}/pipelines",
        "--nproc_per_node=4": "--nproc_per_node=2",
        "$(hostname):29500": "localhost:0",
        "brats train --data /shared/brats2021": f"mosi train --data {folder / 'mosi.pkl'} "
        f"--config {folder / 'config.yaml'}",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text + "\n"


def test_documented_script_saves_on_the_signal_is_requeued_and_finishes(folder, environment):
    script, run, output = folder / "job.sh", folder / "run", folder / "job.out"
    script.write_text(documented(folder))
    command = ["sbatch", "--parsable", f"--output={output}", str(script)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    job = done.stdout.strip()

    def tell(*words):
        subprocess.run(words, env=environment, check=True)

    def until(condition):
        deadline = time.monotonic() + 900
        while not condition():
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)

    until(lambda: [*run.glob("checkpoints/epoch-*")])
    tell("scancel", "--signal=USR1", job)  # what --signal sends before the time limit
    until(lambda: "the ranks were told to save" in output.read_text())
    until(lambda: "PENDING" in state(job, environment))
    assert '"finished": true' not in read(run / "results.json")
    # SLURM waits for two minutes; within a second of the end the node refuses the job as revoked.
    tell("scontrol", "update", f"JobId={job}", "StartTime=now+10seconds")
    until(lambda: '"finished": true' in read(run / "results.json"))
    said = output.read_text()
    assert said.count("SIGUSR1: saved ") == 1
    assert said.count("SIGUSR1: the ranks were told to save and to end.\n") == 1
    assert "Traceback" not in said
    assert json.loads((run / "environment.json").read_text())["resumed_at"] > 0
    until(lambda: not state(job, environment))


def state(job, environment):
    words = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return "" if "COMPLETING" in found.stdout else found.stdout


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
