import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cggm.errors import UserError
from cggm.runs.watch.logs import JsonLines, TensorBoardLog, read_jsonl


def test_lines_are_readable_while_the_file_is_open(tmp_path):
    with JsonLines(tmp_path / "a.jsonl") as lines:
        lines.write({"iteration": 1, "score": {"flair": 0.5}})
        assert read_jsonl(lines.path) == [{"iteration": 1, "score": {"flair": 0.5}}]
        lines.write({"iteration": 2})
    assert [r["iteration"] for r in read_jsonl(tmp_path / "a.jsonl")] == [1, 2]


def test_numbers_that_json_lacks_are_null(tmp_path):
    with JsonLines(tmp_path / "a.jsonl") as lines:
        lines.write(
            {
                "a": math.nan,
                "b": [math.inf, {"c": -math.inf}],
                "d": torch.tensor(0.5),
                "e": np.float32(math.nan),
                "f": np.int64(3),
                "g": None,
                "h": ("x", True),
            }
        )
    (record,) = read_jsonl(tmp_path / "a.jsonl")
    assert record == {
        "a": None,
        "b": [None, {"c": None}],
        "d": 0.5,
        "e": None,
        "f": 3,
        "g": None,
        "h": ["x", True],
    }


def test_reopening_appends(tmp_path):
    for iteration in (1, 2):
        with JsonLines(tmp_path / "a.jsonl") as lines:
            lines.write({"iteration": iteration})
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 2


@given(cut=st.integers(0, 60))
def test_torn_file_is_mended_on_opening(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("log") / "a.jsonl"
    whole = b"".join(json.dumps({"iteration": i}).encode() + b"\n" for i in range(3))
    file.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert len(read_jsonl(file)) == complete
    with JsonLines(file) as lines:
        lines.write({"iteration": 9})
    assert [r["iteration"] for r in read_jsonl(file)] == [*range(complete), 9]


def test_truncate_after_drops_what_a_resumed_run_repeats(tmp_path):
    with JsonLines(tmp_path / "a.jsonl") as lines:
        lines.write({"note": "no iteration"})
        for iteration in range(1, 6):
            lines.write({"iteration": iteration})
        lines.truncate_after(iteration=3)
        lines.write({"iteration": 4, "again": True})
    records = read_jsonl(lines.path)
    assert [r.get("iteration") for r in records] == [None, 1, 2, 3, 4]
    assert records[-1]["again"]


@pytest.mark.parametrize("line", ["{", "3", "[]", "\x00"])
def test_altered_line_is_refused_by_number(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        read_jsonl(file)


def test_tensorboard_shows_nested_numbers_and_hides_what_is_resumed(tmp_path):
    log = TensorBoardLog(tmp_path)
    for iteration in range(1, 5):
        log.write({"loss": iteration, "score": {"flair": math.nan}, "x": "t"}, iteration=iteration)
    log.close()
    time.sleep(1.01)  # files of one second are read in the order of a counter as text: 10 before 9
    log = TensorBoardLog(tmp_path, resumed_at=2)
    log.write({"loss": 30.0, "score": {"flair": 0.25}}, iteration=3)
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "score/flair"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [e.value for e in events.Scalars("score/flair")] == [0.25]


LOST_FOLDER = """
import shutil, sys
from pathlib import Path
from cggm.runs.cli import run
from cggm.runs.watch.logs import TensorBoardLog

def main(argv):
    folder = Path(argv[0])
    log = TensorBoardLog(folder)
    shutil.rmtree(folder)
    folder.touch()  # a file in the way
    try:
        for step in range(10_000):
            log.write({"loss": 1.0}, iteration=step)
    finally:
        log.close()

sys.exit(run(main, sys.argv[1:]))
"""


def test_events_that_cannot_be_written_are_one_message(tmp_path):
    folder = tmp_path / "events"
    ended = subprocess.run(
        [sys.executable, "-c", LOST_FOLDER, folder], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {folder}/events.out.tfevents")
    assert ended.stderr.endswith(": Not a directory. Check the path and its permissions.\n")
