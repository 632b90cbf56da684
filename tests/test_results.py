"""The tables of the results page are those of the files that were measured."""

from pathlib import Path

from benchmarks import result_tables

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text()


def test_tables_are_those_that_were_measured():
    tables = result_tables.all_tables()
    assert len(tables) == 8
    assert not [table.splitlines()[0] for table in tables if table not in PAGE]
