"""Commands that are killed in the moment before their file appears, and the same ones again."""

import os
import signal
import subprocess
import sys

from cggm.runs.storage.files import is_draft
from tests.cggm_seg.nifti import case_file
from tests.pipelines.commands import SCRIPTS, call
from tests.pipelines.faults import write_good_cases

KILLED = """
import os, runpy, signal, sys
_, target, *sys.argv = sys.argv
replace = os.replace

def kill(source, to):
    if str(to) == target:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, to)

os.replace = kill
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def drafts(folder):
    return [path for path in folder.rglob(".*") if is_draft(path)]


def test_the_next_evaluation_takes_away_what_a_killed_one_left(tmp_path):
    (tmp_path / "maps").mkdir()
    for case in write_good_cases(tmp_path / "cases", 2):
        os.link(case_file(tmp_path / "cases", case, "seg"), tmp_path / "maps" / f"{case}.nii.gz")
    file = tmp_path / "scores.json"
    argv = ("--predictions", tmp_path / "maps", "--reference", tmp_path / "cases")
    command = [sys.executable, "-c", KILLED, file, SCRIPTS["evaluate"].__file__, *argv]
    words = [str(word) for word in (*command, "--output", file)]
    killed = subprocess.run(words, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not file.exists()
    assert len(drafts(tmp_path)) == 1
    assert call("evaluate", *argv, "--output", file) == 0
    assert file.exists()
    assert drafts(tmp_path) == []
