"""A task and a metric of one's own, in two files that are no part of the source."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import compare, report
from tests.documents import PAGES, blocks

METRIC, RESULTS = (code for _, code in blocks(PAGES["docs/howto/new_metric.md"], "python"))
[(_, TABLE)] = blocks(PAGES["docs/howto/new_metric.md"], "yaml")
MAIN = """
import sys

told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
seed = int(told["--seed"])
right = np.repeat([1, 0], [80 - seed, 20 + seed])  # in 100 predictions of the same confidence
confidence = {"joint": 0.95, "ogm": 0.88}[told["--method"]]
error = calibration_error(np.full(100, confidence), right)
leave_results(told["--output"], told["--method"], seed, error)
"""


def call(script, *arguments):
    """A command in a process of its own, which knows nothing of other tests' metrics."""
    done = subprocess.run(
        [sys.executable, script.__file__, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "calls_train.py").write_text("\n".join([METRIC, RESULTS, MAIN]))
    (folder / "tasks.yaml").write_text(TABLE)
    output = folder / "comparison"
    call(
        *(compare, "--tasks", folder / "tasks.yaml", "--task", "calls", "--methods", "joint,ogm"),
        *("--seeds", 5, "--output", output),
    )
    return folder, output


def test_tables_take_label_digits_and_direction_from_the_record(compared):
    _, output = compared
    table = (output / "tables" / "calls-performance.md").read_text()
    assert "| calibration error (%) |" in table.replace("  ", "")
    assert "**10.0 ± 1.6**" in table, "the lower error is the better one"
    assert "| better" in table
    lines = (output / "tables" / "calls-performance.csv").read_text().splitlines()[1:]
    rows = list(csv.DictReader(lines))
    assert [row["ece"] for row in rows] == ["17.0 ± 1.6", "10.0 ± 1.6"]
    assert [row["verdict on ece"] for row in rows][1] == "better"


def test_reports_of_the_comparison_and_of_a_run_show_it(compared):
    folder, output = compared
    page = (output / "report.html").read_text()
    assert "calls: calibration error minus joint" in page
    assert "lower is better" in page
    run = output / "runs" / "calls" / "ogm" / "seed-0"
    call(report, run, "--tasks", folder / "tasks.yaml")
    page = (run / "report.html").read_text()
    error = json.loads((run / "results.json").read_text())["test"]["ece"]
    assert error == pytest.approx(8.0)
    assert (
        f'<dt>calibration error</dt><dd><span class="value" data-v="{error}">8.0</span> %' in page
    )
    assert "Validation: calibration error (%)" in page
    assert "SIMULATED DATA" in page


def test_a_task_in_a_module_needs_no_table(compared, tmp_path):
    folder, _ = compared
    (tmp_path / "own_tasks.py").write_text(
        "from pathlib import Path\nfrom cggm.reports import Task\n"
        "from cggm.runs import Metric, register_metrics\n"
        'register_metrics(Metric("ece", "calibration error", "lower", digits=1, unit="%"))\n'
        f"CALLS = Task('calls', Path({str(folder / 'calls_train.py')!r}), ('voice',), ('ece',))\n"
    )
    given = ("--task", "own_tasks:CALLS", "--methods", "joint,ogm", "--seeds", "1")
    output = tmp_path / "comparison"
    done = subprocess.run(
        [sys.executable, compare.__file__, *given, "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "calibration error (%)" in (output / "tables" / "calls-performance.md").read_text()


def test_nothing_of_it_is_in_the_source():
    root = Path(compare.__file__).parents[1]
    files = [f for p in ("cggm", "configs", "pipelines") for f in (root / p).rglob("*.*")]
    texts = [f.read_text() for f in files if f.suffix in (".py", ".pyi", ".yaml")]
    assert len(texts) > 50
    assert not [text for text in texts if '"ece"' in text]
