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
    assert all(words in text for words in told)
    assert ("Duration" in text) == ("Loading data" in text) == (times is not None)


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
