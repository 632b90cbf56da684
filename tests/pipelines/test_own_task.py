"""A task and a metric of one's own, in two files that are no part of the source."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import compare, report

# The first file: a training that computes the metric and registers it.
SCRIPT = """
import sys
from pathlib import Path

from cggm.runs import JsonLines, Metric, RunFolder, keep_metrics, register_metrics, write_json

register_metrics(Metric("toy_ece", "calibration error", "lower", digits=1, unit="%"))

told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = RunFolder(Path(told["--output"]))
run.make()
keep_metrics(run.metric_records)
settings = f"balancer: {{name: {told['--method']}, settings: {{}}}}"
run.config.write_text(f"task: toy\\nseed: {told['--seed']}\\n{settings}\\n")
error = {"joint": 20.0, "ogm": 12.0}[told["--method"]] + int(told["--seed"]) / 10
with JsonLines(run.metrics) as log:
    log.write({"epoch": 1, "iteration": 5, "train_loss": 1.0, "val_toy_ece": error + 1})
write_json(run.results, {"simulated": True, "test": {"toy_ece": error}})
"""
# The second one: what comparisons show.
TABLE = """
toy:
  script: toy_train.py
  modalities: [left, right]
  metrics: [toy_ece]
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
    (folder / "toy_train.py").write_text(SCRIPT)
    (folder / "tasks.yaml").write_text(TABLE)
    output = folder / "comparison"
    call(
        *(compare, "--tasks", folder / "tasks.yaml", "--task", "toy", "--methods", "joint,ogm"),
        *("--seeds", 5, "--output", output),
    )
    return folder, output


def test_tables_take_label_digits_and_direction_from_the_record(compared):
    _, output = compared
    table = (output / "tables" / "toy-performance.md").read_text()
    assert "| calibration error (%) |" in table.replace("  ", "")
    assert "**12.2 ± 0.2**" in table, "the lower error is the better one"
    assert "| better" in table
    lines = (output / "tables" / "toy-performance.csv").read_text().splitlines()[1:]
    rows = list(csv.DictReader(lines))
    assert [row["toy_ece"] for row in rows] == ["20.2 ± 0.2", "12.2 ± 0.2"]
    assert [row["verdict on toy_ece"] for row in rows][1] == "better"


def test_reports_of_the_comparison_and_of_a_run_show_it(compared):
    folder, output = compared
    page = (output / "report.html").read_text()
    assert "toy: calibration error minus joint" in page
    assert "lower is better" in page
    run = output / "runs" / "toy" / "ogm" / "seed-0"
    call(report, run, "--tasks", folder / "tasks.yaml")
    page = (run / "report.html").read_text()
    assert '<dt>calibration error</dt><dd><span class="value" data-v="12.0">12.0</span> %' in page
    assert "Validation: calibration error (%)" in page
    assert "SIMULATED DATA" in page


def test_nothing_of_it_is_in_the_source():
    root = Path(compare.__file__).parents[1]
    files = [f for p in ("cggm", "configs", "pipelines") for f in (root / p).rglob("*.*")]
    texts = [f.read_text() for f in files if f.suffix in (".py", ".pyi", ".yaml")]
    assert len(texts) > 50
    assert not [text for text in texts if "toy_ece" in text]
