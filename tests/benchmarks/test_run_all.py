"""One command measures every file of benchmarks/results again that is no comparison."""

import re
from importlib.util import find_spec
from pathlib import Path

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
