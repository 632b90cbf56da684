"""The GPU evening, rehearsed on a processor: every part runs, and ends when it has to."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu
from tests.documents import ROOT
from tests.quantifiers import every


@pytest.mark.slow
def test_every_part_is_rehearsed(tmp_path):
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == list(gpu.PARTS)
    assert "failed" not in json.dumps(record)
    waits = record["parts"]["waits"]["rows"]
    assert waits["looked at every 16 steps"]["waits"] == 0
    assert waits["looked at in each step"]["waits"] >= 1
    sides = record["parts"]["step"]["rows"]
    assert len(sides) >= 12
    assert every(row["seconds"] > 0 and row["time_ratio"] > 0 for row in sides.values())
    page = (tmp_path / "gpu.md").read_text()
    assert "A rehearsal on a processor, NOT on a GPU" in page
    assert every(f"\n## {name}\n" in page for name in gpu.PARTS)


def test_parts_end_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    def slow(bench):
        one = gpu.attempted(bench, lambda _: {"row": {"seconds": 1.0}})
        return {**one, "endless": gpu.attempted(bench, lambda _: time.sleep(60))}

    parts = {"slow": slow, "never": lambda _: {"row": {"seconds": 2.0}}}
    monkeypatch.setattr(gpu, "PARTS", parts)
    began = time.monotonic()
    bench = gpu.Bench(gpu.torch.device("cpu"))
    assert not gpu.run(bench, tmp_path, minutes=1 / 60, parts=[*parts])
    assert time.monotonic() - began < 20
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert found["slow"]["rows"] == {
        "row": {"seconds": 1.0},
        "endless": {"failed": "no time was left"},
    }
    assert found["never"]["rows"] == {"failed": "no time was left"}
    assert "no time was left" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", {"broken": lambda _: 1 / 0, "whole": lambda _: {"a": {}}})
    assert not gpu.run(gpu.Bench(gpu.torch.device("cpu")), tmp_path, 1, ["broken", "whole"])
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert found["broken"]["rows"] == {"failed": "ZeroDivisionError: division by zero"}
    assert found["whole"]["rows"] == {"a": {}}
