"""Tables, verdicts and rows of the pages are those of the files that were measured."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.faults import run
from tests.quantifiers import every

ROOT = Path(__file__).parent.parent
TEXTS, ROWS = pages.blocks(), pages.table_rows()
DOCS = {name: (ROOT / "docs" / name).read_text() for name in pages.PAGES}


def test_the_table_of_faults_is_that_of_the_figures():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())
    assert len(results) >= 12
    assert run.with_table(page, results) == page
    assert run.BEGIN in page


def test_steps_in_nnunet_are_of_three_trainings():
    plans = json.loads((ROOT / "benchmarks" / "results" / "nnunet.json").read_text())
    assert every({"nnU-Net", "joint", "CGGM"} <= {*found["sides"]} for found in plans.values())
    row = plans["plain, 32"]["sides"]["CGGM"]
    said = f"{row['time_ratio']:.2f} times the time and {row['memory_ratio']:.2f} times the memory"
    assert said in (ROOT / "docs" / "howto" / "nnunet.md").read_text()


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_is_what_its_files_say(name):
    page = DOCS[name]
    assert pages.with_rows(pages.with_blocks(page, TEXTS), ROWS) == page


def test_every_block_and_row_stands_on_one_page():
    everything = "\n".join(DOCS.values())
    assert {name: everything.count(f"<!-- {name} -->\n") for name in TEXTS} == dict.fromkeys(
        TEXTS, 1
    )
    assert everything.count(pages.END) == len(TEXTS)
    assert [DOCS["which_method.md"].count(f"\n{row}\n") for row in ROWS] == [1, 1, 1]


@pytest.mark.parametrize(
    "title",
    [
        "Real data: UCI Multiple Features",
        "Missing modalities on real data",
        "Missing sequences in segmentation",
    ],
)
def test_prose_about_a_comparison_has_no_figure_of_its_own(title):
    section = DOCS["results.md"].split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert section.count("<!-- end -->") >= 2
    prose = re.sub(r"<!-- [a-z ]+ -->\n.*?<!-- end -->", "", section, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`", "", prose).replace("probability\n0.2", "")
    assert re.findall(r"\d*\.\d+|\d+ points?", prose) == []


def test_the_shares_of_faults_that_were_noticed_are_those_of_the_figures():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "mutants.json").read_text())
    killable = found["tried"] - found["cannot_be"]
    assert found["noticed"] == killable == len(found["rows"])
    assert f"Of {found['tried']} faults, {found['cannot_be']} change nothing" in page
    assert f"of the other {killable} were" in page
    assert every(row["cannot_be"] for row in found["survivors"])
