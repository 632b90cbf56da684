"""The fault suite on small data: every bar holds, and careless readers miss it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.faults.caches import builds
from benchmarks.faults.caches.bench import Bench
from benchmarks.faults.files import readers
from benchmarks.faults.training import overflow
from tests.quantifiers import every

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_bar_holds_and_the_faults_are_real(tmp_path):
    file = tmp_path / "faults.json"
    file.write_text('{"earlier": {}}')
    command = [sys.executable, "-m", "benchmarks.faults.run", "--quick", "--json", file]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads(file.read_text())
    assert results.pop("earlier") == {}
    assert every(result["holds"] and result["quick"] for result in results.values())
    figures = {name: result["figures"] for name, result in results.items()}
    flips, checkpoints = figures["bit_flips"], figures["checkpoint_flips"]
    assert flips["nibabel"]["missed"] > flips["content-changing flips"] / 2
    assert checkpoints["torch.load, weights_only"]["accepted with other weights"] > 50
    assert figures["hostile_checkpoints"]["torch.load"]["executed"] == 50
    assert figures["kills"]["forks"]["kills during the training"] == 2
    assert figures["workers"]["most that training changes a weight"] > 1e-3
    assert figures["workers"]["ranks 2, workers 2"]["largest difference of a weight"] > 0
    monai = figures["workers"]["MONAI's DataLoader and random transforms"]
    assert not monai["ranks 1, workers 2"].startswith("0 of")
    assert figures["storage"]["Ignite, n_saved=1"]["no space"] == "lost 1 of 1"


@pytest.mark.parametrize("family", ["bit_flips", "truncation"])
def test_a_careless_reader_misses_the_bar(monkeypatch, family):
    monkeypatch.setattr(readers, "ours", readers.nibabel)
    assert not import_module(f"benchmarks.faults.files.{family}").measure(quick=True)["holds"]


def test_a_stale_cache_is_seen(monkeypatch, tmp_path):
    is_there = "cggm_seg.data.cache.build.is_current"
    monkeypatch.setattr(is_there, lambda case, file, *_: file.exists())
    found = builds.changed_source(Bench(tmp_path, 1))
    assert found == {"right": 0, "stale": 1, "torn": 0}


def test_a_loop_that_steps_on_overflow_misses_the_bar(monkeypatch):
    def step(scaler, optimizer):
        scaler.unscale_(optimizer)
        optimizer.step()

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    assert not overflow.measure(quick=True)["holds"]


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp")
def test_refused_calls_fail_for_files_alone(tmp_path):
    script = """
import os, sys
from benchmarks.faults.processes.system_calls import FAULTS, refuse
for name, calls in FAULTS.items():
    if not os.fork():
        refuse(calls)
        try:
            with open(name.replace("/", "-"), "w") as file:
                file.write("text")
                file.flush()
                os.fsync(file)
            found = 0
        except OSError as error:
            found = error.errno
        os.write(1, b"said\\n")
        os._exit(found != next(iter(calls.values())))
    assert os.wait()[1] == 0, name
open("after", "w").write("text")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("said") == 5
