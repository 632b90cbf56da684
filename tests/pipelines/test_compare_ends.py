"""Ends of the comparison other than success: interrupts, refusals, failures, wrong options."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cggm.comparison.records import read_records
from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.mosi.simulation import simulate_mosi
from pipelines import compare
from tests.pipelines.comparing import call, group_lives, start, tiny_config, wait_for


@pytest.mark.parametrize("whom", [pytest.param("group", marks=pytest.mark.slow), "command"])
def test_interrupt_ends_in_one_line_and_leaves_no_process(whom, tmp_path):
    output = tmp_path / "comparison"
    options = ("--config", tiny_config(tmp_path), "--output", output, "--methods", "plain")
    process = start("--task", "mfeat", *options)
    wait_for((output / "runs" / "mfeat" / "plain" / "seed-0.log").exists, process)
    if whom == "group":
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    else:
        process.terminate()
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "interrupted\n")
    assert out == "5 trainings: 1 method, 5 seeds, on mfeat; 5 to run\n"
    deadline = time.monotonic() + 10
    while group_lives(process):  # the server of imports goes when it notices
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (output / "runs.jsonl").exists()


@pytest.fixture
def mosi(tmp_path):
    """Folder of a comparison on small simulated data, and the command for it without methods."""
    data, output = tmp_path / "mosi.pkl", tmp_path / "comparison"
    simulate_mosi(data, train=32, valid=16, test=16)
    options = ("--data", data, "--config", tiny_config(tmp_path), "--output", output)
    return output, ("--task", "mosi", *options)


def test_refusal_counts_for_every_seed_and_for_good(mosi, capsys):
    output, command = mosi
    assert call(*command, "--methods", "pmr", "--seeds", 2) == 0
    out = capsys.readouterr().out
    assert "[2/2] mosi pmr seed 0" in out
    assert ", refused: PMR cannot be used here: Expected a linear output layer" in out
    assert len(read_jsonl(output / "refused.jsonl")) == 1
    assert "- mosi, pmr: PMR cannot be used here: " in (output / "comparison.md").read_text()
    assert not (output / "runs" / "mosi" / "pmr" / "seed-1.log").exists()
    assert call(*command, "--methods", "pmr", "--seeds", 3) == 0
    assert "3 trainings: 1 method, 3 seeds, on mosi; 0 to run\n" in capsys.readouterr().out


def test_failure_is_listed_and_tried_again(mosi, capsys):
    output, command = mosi
    command = (*command, "--methods", "plain", "--seeds", 1)
    folder = output / "runs" / "mosi" / "plain" / "seed-0"
    output.mkdir()
    (output / "comparison.json").write_text(json.dumps({"arguments": [*map(str, command[2:6])]}))
    folder.parent.mkdir(parents=True)
    folder.touch()  # where the run folder is to be
    assert call(*command) == 1
    out = capsys.readouterr().out
    assert ", FAILED with exit code 2\n" in out
    assert f"failed: mosi plain seed 0: {folder}: the run folder cannot be made" in out
    assert f"        {folder}.log\nThe same command tries them again.\n" in out
    assert f"error: {folder}: the run folder" in Path(f"{folder}.log").read_text()
    assert not (output / "refused.jsonl").exists()

    folder.unlink()
    assert call(*command) == 0
    assert "failed" not in capsys.readouterr().out
    (record,) = read_records(output / "runs.jsonl")
    assert (record.method, record.seed, record.simulated) == ("plain", 0, True)
    assert record.seconds is not None
    page = (output / "comparison.md").read_text()
    assert page.startswith("# Comparison of balancing methods on SIMULATED data\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--task", "mosy"), "Unknown task 'mosy'. Available: brats, mosi, "),
        (("--methods", "cgm"), "Unknown method 'cgm'. Available: unimodal, agm, "),
        (("--methods", "cggm:rhoo=1"), "Unknown setting 'rhoo' of cggm. Available: rho, "),
        (("--seeds", "0"), "Expected seeds of at least 1, but got 0"),
        (("--jobs", "0"), "Expected jobs of at least 1, but got 0"),
        (("--seed", "1"), "Unknown option --seed. Did you mean --seeds?"),
        (("--output", "{folder}/file"), "file: File exists. Choose another, or remove it."),
        (("--output", "{folder}/file/below"), "below: Not a directory. Check the path"),
        (("--output", "{folder}"), "expected a new or empty folder, or one of a comparison"),
        (("--output", "{folder}/damaged"), "runs.jsonl, line 1: expected a JSON object"),
        (
            ("--output", "{folder}/torn"),
            "refused.jsonl: expected line 1 to be an object with 'method'",
        ),
    ],
)
def test_wrong_options(options, expected, tmp_path, capsys):
    (tmp_path / "file").touch()
    for name, file, text in (
        ("damaged", "runs.jsonl", "{]\n"),
        ("torn", "refused.jsonl", '{"task": "mosi"}\n'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text('{"arguments": []}')
        (tmp_path / name / file).write_text(text)
    before = sorted(tmp_path.rglob("*[!k]"))
    given = {"--task": "mfeat", "--output": str(tmp_path / "new"), "--methods": "plain"}
    given |= dict([options])
    argv = [word.format(folder=tmp_path) for option in given.items() for word in option]
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(tmp_path.rglob("*[!k]")) == before


def test_help_is_quick():
    before = os.times()
    done = subprocess.run(
        [sys.executable, compare.__file__, "--help"], capture_output=True, text=True, check=True
    )
    after = os.times()
    used = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    assert used < 1.0
    assert "Compare balancing methods:\n  --task NAME" in done.stdout
    assert "--sweep" in done.stdout
