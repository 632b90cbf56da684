"""What the page of a comparison shows of trainings that never were."""

from pathlib import Path

import numpy as np
import pytest

from cggm.comparison.gradients import describe_agreement, gradient_chart, read_gradients
from cggm.comparison.plan import Plan
from cggm.comparison.results import write_results
from cggm.reports.tasks import load_tasks
from cggm.runs.gradients import write_gradients
from tests.cggm.comparison.runs import run, runs

TASKS = load_tasks(Path(__file__).parents[2] / "configs" / "tasks.yaml")
METHODS = {"joint": 0.0, "cggm": 0.1, "cggm:rho=0.5": -0.1, "ogm:alpha=0.5": 0.2}


@pytest.fixture
def records():
    noise = np.random.default_rng(0).normal(0.7, 0.01, 5)
    return [
        r for name, gain in METHODS.items() for r in runs(name, [*(noise + gain)], task="mfeat")
    ]


def rows(output, table):
    lines = (output / "tables" / f"{table}.csv").read_text().splitlines()
    return [line.partition(",")[0] for line in lines if line.partition(",")[0] in METHODS]


def test_sweep_is_a_figure_and_other_settings_are_rows(records, tmp_path):
    plan = Plan((TASKS["mfeat"],), ("joint", "ogm:alpha=0.5"), (0,), sweep=True)
    page, report = write_results(tmp_path, plan, records, {}, TASKS, kinds=["pdf"])
    page, report = page.read_text(), report.read_text()
    assert 0 < report.index(">Verdicts<") < report.index(">mfeat<") < report.index(">Ranks<")
    assert page.index("**Verdicts**") < page.index("**Performance on mfeat**")
    assert (tmp_path / "figures" / "mfeat-sweep.pdf").read_bytes().startswith(b"%PDF")
    assert rows(tmp_path, "mfeat-performance") == ["joint", "cggm", "ogm:alpha=0.5"]
    assert rows(tmp_path, "ranks") == ["ogm:alpha=0.5", "cggm", "joint"]
    assert "(figures/mfeat-sweep.png)" in page
    assert (tmp_path / "figures" / "mfeat-sweep.png").exists()
    assert "20 trainings, seeds 0, 1, 2, 3, 4, " in page


def test_setting_of_the_sweep_is_a_row_where_it_was_asked_for(records, tmp_path):
    write_results(tmp_path, Plan((TASKS["mfeat"],), ("cggm:rho=0.5",), (0,)), records, {}, TASKS)
    assert "cggm:rho=0.5" in rows(tmp_path, "mfeat-performance")


def test_page_without_any_result_has_the_refusals(tmp_path):
    plan = Plan((TASKS["mosi"],), ("pmr",), (0,))
    page, _ = write_results(tmp_path, plan, [], {("mosi", "pmr"): "no classes"}, TASKS)
    page = page.read_text()
    assert page.startswith("# Comparison of balancing methods\n")
    assert page.endswith("- mosi, pmr: no classes\n")
    assert list((tmp_path / "figures").iterdir()) == []


def test_agreement_of_directions_by_hand(tmp_path):
    vectors = {
        "head a": np.float32([[2, 0], [0, 3]]),
        "unimodal a": np.float32([[1, 0], [1, 0]]),  # cosines 1 and 0
        "head b": np.float32([[0, 0], [1, 1]]),  # no direction at all counts as 0
        "unimodal b": np.float32([[0, -1], [0, -1]]),  # with head b 0 and -0.71
    }
    (tmp_path / "runs" / "x").mkdir(parents=True)
    write_gradients(tmp_path / "runs" / "x" / "gradients.npz", vectors)
    record = run("joint", 0, {"acc": 1.0})  # of the folder runs/x
    found = read_gradients([record], tmp_path)
    assert read_gradients([record], tmp_path / "elsewhere") == {}
    clouds = gradient_chart("joint", found["joint"]).clouds
    assert [(c.name, c.crossed, len(c.x)) for c in clouds] == [
        ("a, head", False, 2),
        ("a, network with it alone", True, 2),
        ("b, head", False, 2),
        ("b, network with it alone", True, 2),
    ]
    assert [c.color for c in clouds] == [0, 0, 1, 1]
    text = describe_agreement(found, "mosi")
    assert "- joint, a: +0.50, with the others' -0.50" in text
    assert "- joint, b: -0.35, with the others' +0.35" in text
