"""``--help`` of every command: quick, with an example, groups, defaults, and no unwrapped line."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "pipelines").glob("[!_]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_shows_an_example_and_loads_nothing_heavy(script):
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "finally: print(sorted({'torch', 'monai', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, loaded = ended.stdout.splitlines()
    assert loaded == "[]", "too slow for --help"
    assert any(line.strip().startswith(f"python pipelines/{script.name}") for line in shown)
    assert len([line for line in shown if line.endswith(":")]) >= 2, "groups of options"
    assert max(map(len, shown)) <= 100
