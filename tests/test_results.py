"""The tables of the results page are those of the files that were measured."""

import json
from pathlib import Path

from benchmarks import result_tables
from benchmarks.faults import run
from tests.quantifiers import every

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text()


def test_the_table_of_faults_is_that_of_the_figures():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())
    assert len(results) >= 12
    assert run.with_table(page, results) == page
    assert run.BEGIN in page


def test_the_table_of_steps_in_nnunet_is_that_of_the_figures():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    plans = json.loads((ROOT / "benchmarks" / "results" / "nnunet.json").read_text())
    assert every({"nnU-Net", "joint", "CGGM"} <= {*found["sides"]} for found in plans.values())
    assert f"\n\n{result_tables.nnunet_table(plans)}\n\n" in page


def test_tables_are_those_that_were_measured():
    tables = result_tables.all_tables()
    assert len(tables) == 10
    assert not [table.splitlines()[0] for table in tables if table not in PAGE]
