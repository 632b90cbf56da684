"""The mutation run: faults are code, and what its notes name is there."""

import json
import subprocess
import sys

import pytest

from tests.mutants import NOTES, _told, calls_of_core
from tests.mutations import ROOT, faults_of, listed, sample
from tests.quantifiers import every

CORE = calls_of_core()


def test_faults_are_code_that_differs():
    for fault in sample(CORE, 200, seed=1):
        source = (ROOT / fault.file).read_text()
        compile(fault.apply(source), fault.file, "exec")
        assert fault.apply(source) != source


def test_kinds_of_faults_by_hand(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text(
        "def f(x: int = 2):\n"
        '    """Not 1."""\n'
        "    if x < 0 and not x:\n"
        '        raise ValueError(f"{x + 1}")\n'
        "    x += 1\n"
        "    return -x\n"
    )
    monkeypatch.setattr("tests.mutations.ROOT", tmp_path)
    found = [(fault.kind, fault.change().partition(" -> ")[2]) for fault in faults_of("one.py")]
    assert found == [
        ("constant", "def f(x: int = 3):"),
        ("branches", "if (not (x < 0 and not x)):"),
        ("boolean", "if ((x < 0) or (not x)):"),
        ("comparison", "if (x <= 0) and not x:"),
        ("comparison", "if (x >= 0) and not x:"),
        ("constant", "if x < 1 and not x:"),
        ("sign", "if x < 0 and x:"),
        ("deleted", "pass"),
        ("deleted", "pass"),
        ("constant", "x += 0"),
        ("sign", "return x"),
    ]


def test_notes_name_what_is_there():
    assert every(files for calls in CORE.values() for _, files in calls[:1])
    for name, edits in NOTES["listed"].items():
        assert len([*listed(name, edits)]) == len(edits)
        assert name in CORE
    for name, changes in NOTES["cannot_be_noticed"].items():
        assert set(changes) <= {fault.change() for fault in faults_of(name)}


def test_what_noticed_a_fault_is_a_test_and_no_log(tmp_path):
    said = tmp_path / "said.log"
    said.write_text(
        "ERROR    ignite.engine:engine.py:1290 Current run is terminating\n"
        "FAILED tests/test_a.py::test_b[c] - assert 1 == 2\n"
    )
    assert _told(said, 1) == "tests/test_a.py::test_b[c]"
    said.write_text("Segmentation fault\n")
    assert _told(said, -11) == "exit -11"


@pytest.mark.slow
def test_a_fault_is_noticed_by_the_test_of_its_module(tmp_path):
    given = ["--only", "runs/loop/schedule.py", "--count", "2", "--jobs", "1"]
    command = [sys.executable, "-m", "tests.mutants", *given, "--json", tmp_path / "found.json"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["tried"], found["noticed"], found["survivors"]) == (2, 2, [])
    assert every("test_schedule.py::" in row["noticed_by"] for row in found["rows"])
