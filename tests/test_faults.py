"""The fault suite on small data: every bar holds, and careless readers miss it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.quantifiers import every

SUITE = Path(__file__).parent.parent / "benchmarks" / "faults"


@pytest.fixture
def suite(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SUITE))
    yield monkeypatch
    for name in set(sys.modules) - before:
        if str(SUITE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
def test_every_bar_holds_and_the_faults_are_real(tmp_path):
    file = tmp_path / "faults.json"
    file.write_text('{"earlier": {}}')
    command = [sys.executable, SUITE / "run.py", "--quick", "--json", file]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

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
def test_a_careless_reader_misses_the_bar(suite, family):
    import case_files

    suite.setattr(case_files, "ours", case_files.nibabel)
    assert not import_module(family).measure(quick=True)["holds"]


def test_a_stale_cache_is_seen(suite, tmp_path):
    import cache_builds

    suite.setattr("cggm_seg.data.cache.build.is_current", lambda case, file, *_: file.exists())
    found = cache_builds.changed_source(cache_builds.Bench(tmp_path, 1))
    assert found == {"right": 0, "stale": 1, "torn": 0}


def test_a_loop_that_steps_on_overflow_misses_the_bar(suite):
    import torch

    def step(scaler, optimizer):
        scaler.unscale_(optimizer)
        optimizer.step()

    suite.setattr(torch.amp.GradScaler, "step", step)
    assert not import_module("overflow").measure(quick=True)["holds"]


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp")
def test_refused_calls_fail_for_files_alone(tmp_path):
    script = """
import os, sys
from system_calls import FAULTS, refuse
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
        env={"PYTHONPATH": str(SUITE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("said") == 5
