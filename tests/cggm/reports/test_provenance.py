import json

import pytest

from cggm.reports.provenance import provenance_section
from cggm.reports.run import RunRecord
from tests.cggm_seg.report_runs import write_run

TIMES = [
    {"seconds": 3000.4, "loading_seconds": 300.0},  # a first start that was killed
    {"seconds": 1000.0, "loading_seconds": 100.0},
]


@pytest.mark.parametrize(
    ("times", "told"),
    [(TIMES, ["1:06:40 (h:mm:ss of training, validation included)", "10.0 % of the training"]),
     (None, [])],
)  # fmt: skip
def test_time_of_all_starts_is_told(times, told, tmp_path):
    run = write_run(tmp_path / "run")
    if times is not None:
        lines = "".join(json.dumps(line) + "\n" for line in times)
        (run / "timing.jsonl").write_text(lines)
    (run / "environment.json").write_text('{"earlier_starts": [{}]}')
    text = provenance_section(RunRecord.read(run)).body
    assert [words for words in told if words not in text] == []
    assert ("Duration" in text) == ("Loading data" in text) == (times is not None)


@pytest.mark.parametrize("seconds", ["Infinity", "NaN", "1e308", "-1e308"])
def test_times_that_are_none_are_not_told(seconds, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "timing.jsonl").write_text(f'{{"seconds": {seconds}, "loading_seconds": 1}}\n')
    text = provenance_section(RunRecord.read(run)).body
    assert [word for word in ("Duration", "Loading data") if word in text] == []


def test_a_resumed_run_says_after_which_step_and_with_what(tmp_path):
    run = write_run(tmp_path / "run")
    starts = {
        "earlier_starts": [{}, {"resumed_at": 6, "changed": {}}],
        "resumed_at": 12,
        "changed": {"max_epochs": [2, 5], "workers": [2, 0]},
    }
    (run / "environment.json").write_text(json.dumps(starts))
    text = provenance_section(RunRecord.read(run)).body
    assert "after step 6; after step 12 with max_epochs 2 to 5, workers 2 to 0" in text


@pytest.mark.parametrize("told", [True, False])
def test_what_the_last_validation_warned_of_is_told(told, tmp_path):
    run = write_run(tmp_path / "run")
    *earlier, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert any(key.startswith("val_") for key in last)
    earlier[-1]["warnings"] = ["Not one voxel was found of ET."]  # a later validation found some
    if told:
        last["warnings"] = ["Not one voxel was found of TC."]
    lines = "".join(json.dumps(line) + "\n" for line in (*earlier, last))
    (run / "metrics.jsonl").write_text(lines)
    text = provenance_section(RunRecord.read(run)).body
    assert ("Not one voxel was found of TC." in text) == told
    assert "Not one voxel was found of ET." not in text
