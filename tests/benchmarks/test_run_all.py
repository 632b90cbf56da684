"""One command measures every file of benchmarks/results again that is no comparison."""

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import run_all
from benchmarks.run_all import COMMANDS

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"faults", "mutants"}  # make faults, make mutants


def test_every_file_of_results_has_a_command():
    files = {file.stem for file in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert files == {*COMMANDS, *ELSEWHERE}


def test_pages_and_the_command_name_the_same_options():
    told = re.findall(
        r"python -m benchmarks\.(\S+.*?) --json benchmarks/results/(\w+)\.json",
        (ROOT / "docs" / "results.md").read_text(),
    )
    assert len(told) >= 6
    for command, name in told:
        assert command == COMMANDS[name], name


def test_every_command_is_a_module():
    assert len(COMMANDS) > 15
    for command in COMMANDS.values():
        assert find_spec(f"benchmarks.{command.split()[0]}"), command


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "--" in command])
def test_options_of_a_command_are_known(monkeypatch, tmp_path, name):
    module, *words = COMMANDS[name].split()
    file = tmp_path / "new.json"
    monkeypatch.setattr(sys, "argv", ["", *words, "--json", str(file)])
    options = import_module(f"benchmarks.{module}").parse()
    assert options.json == file


def test_a_benchmark_that_fails_keeps_no_other_from_being_run(monkeypatch, tmp_path, capfd):
    commands = {"none": "data.nothing", "known_answer": "known.answer --seeds x", "metrics": ""}
    monkeypatch.setattr(run_all, "COMMANDS", commands)
    argv = ["", "--output", str(tmp_path / "new"), "--only", "none", "known_answer"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="Without a result: none, known_answer; "):
        run_all.main()
    said = capfd.readouterr().err
    assert "No module named benchmarks.data.nothing" in said
    assert "invalid int value: 'x'" in said
