"""The command that verifies data: exit codes, JSON, interruption."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cggm.runs.cli import run
from pipelines import brats_verify
from tests.cggm_seg.nifti import write_case
from tests.pipelines.commands import ROOT
from tests.pipelines.faults import FAULTS, write_bad_case, write_good_cases

CODES = {
    "missing": "missing-file",
    "truncated": "damaged-file",
    "flipped": "damaged-file",
    "shape": "shape-mismatch",
    "affine": "affine-mismatch",
    "nan": "not-finite",
    "label": "unknown-label",
}


def verify(*argv):
    return run(brats_verify.main, [*map(str, argv), "--workers", "1"])


def start(*argv, **options):
    command = [sys.executable, str(ROOT / "pipelines" / "brats_verify.py"), *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **options)


def test_sound_data_ends_with_0(tmp_path, capsys):
    write_good_cases(tmp_path)
    assert verify("--data", tmp_path) == 0
    out = capsys.readouterr().out
    assert out == (f"3 cases, 15 files: no errors\nmanifest {tmp_path}/.verified/manifest.jsonl\n")
    assert verify("--data", tmp_path) == 0
    assert capsys.readouterr().out.startswith("3 cases, 15 files, 15 of them verified before: no e")


def test_every_fault_is_listed_in_one_pass_and_ends_with_2(tmp_path, capsys):
    data, file = tmp_path / "data", tmp_path / "new" / "findings.json"
    write_good_cases(data)
    files = {fault: write_bad_case(data, fault) for fault in FAULTS}
    # All bad cases are drawn alike, and so their good files are the same.
    for seed, fault in enumerate(FAULTS):
        write_case(data, fault, shape=(40, 36, 16), seed=20 + seed)
        FAULTS[fault][1](files[fault])
    assert verify("--data", data, "--json", file) == 2
    out = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["cases"], found["files"], found["unchanged"]) == (10, 49, 0)
    assert {f["case"]: f["code"] for f in found["findings"]} == CODES
    for finding in found["findings"]:
        assert data / finding["file"] == files[finding["case"]]
        assert finding["severity"] == "error"
        assert finding["what"] in out
        assert finding["fix"] in out
    assert "10 cases, 49 files: 7 errors\n" in out
    assert len(found["findings"]) == 7


def test_warnings_alone_end_with_0_and_say_so(tmp_path, capsys):
    write_good_cases(tmp_path)
    write_case(tmp_path, "other", shape=(30, 36, 16), seed=9)
    assert verify("--data", tmp_path) == 0
    out = capsys.readouterr().out
    assert "warning  odd-geometry  other  other/other_flair.nii.gz\n" in out
    assert "4 cases, 20 files: no errors and 1 warning\n" in out


def test_folder_without_cases_and_a_table_that_cannot_be_written(tmp_path, capsys):
    assert verify("--data", tmp_path) == 2
    assert "Expected BraTS cases" in capsys.readouterr().err
    write_good_cases(tmp_path / "data")
    assert verify("--data", tmp_path / "data", "--json", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: Is a directory.")


@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_interrupted_verification_goes_on_where_it_stopped(tmp_path, sent, workers):
    cases = 120  # enough that the signal comes before the end
    write_good_cases(tmp_path, cases)
    journal = tmp_path / ".verified" / "manifest.partial"
    process = start("--data", tmp_path, "--workers", workers)
    while not (journal.exists() and journal.stat().st_size):
        time.sleep(0.002)
    process.send_signal(sent)
    _, err = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 130), err
    assert "Traceback" not in err
    done = journal.read_text().count("\n{")
    assert 0 < done < 5 * cases
    process = start("--data", tmp_path, "--workers", workers)
    out, _ = process.communicate()
    assert process.returncode == 0
    again = int(out.partition("files, ")[2].partition(" ")[0])
    assert done - 5 <= again <= done
    assert again % 5 == 0
    assert not journal.exists()
    assert len((journal.parent / "manifest.jsonl").read_text().splitlines()) == 5 * cases
