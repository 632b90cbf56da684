import json

import pytest

from cggm.comparison.records import (
    FinishedRun,
    by_seed,
    methods,
    modality_names,
    of_method,
    of_task,
    read_records,
    seeds,
    tasks,
)
from cggm.errors import UserError
from tests.cggm.comparison.runs import run, runs

LINE = {
    "task": "mosi",
    "method": "cggm",
    "seed": 0,
    "seconds": 33.1,
    "peak_mb": None,
    "simulated": True,
    "test": {"acc": 0.7, "corr": None},
    "subsets": {"text": {"acc": 0.6}},
    "heads": {},
    "path": "runs/a",
}


def test_a_cut_last_line_is_ignored(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {"seed": 1})[:-9])
    assert read_records(file) == [FinishedRun(**LINE)]


def test_the_number_of_test_samples_may_be_told(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(LINE | {"samples": 7}) + "\n")
    assert read_records(file) == [FinishedRun(**LINE, samples=7)]


def test_wrong_keys_are_refused_with_their_line(tmp_path):
    file = tmp_path / "runs.jsonl"
    cut = {key: value for key, value in LINE.items() if key != "heads"}
    file.write_text(json.dumps(LINE) + "\n" + json.dumps(cut | {"speed": 1}) + "\n")
    with pytest.raises(UserError, match=r"line 2: .* differ: heads, speed"):
        read_records(file)


def test_groups_keep_the_order_of_appearance():
    records = [run("b", 0, {}), run("a", 3, {}, task="brats"), run("b", 3, {}, task="brats")]
    assert tasks(records) == ["mosi", "brats"]
    assert methods(records) == ["b", "a"]
    assert of_task(records, "brats") == records[1:]
    assert of_method(records, "b") == [records[0], records[2]]
    assert seeds(records) == 2


def test_modalities_come_from_heads_and_subsets():
    records = [run("a", 0, {}, heads={"text": {}}), run("b", 0, {}, subsets={"audio+text": {}})]
    assert modality_names(records) == ["text", "audio"]


def test_undefined_values_are_left_out_and_a_later_record_wins():
    records = [*runs("a", [0.1, 0.2]), run("a", 2, {"acc": None}), run("a", 0, {"acc": 0.3})]
    assert by_seed(records, lambda r: r.test.get("acc")) == {0: 0.3, 1: 0.2}
