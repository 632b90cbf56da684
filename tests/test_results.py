"""Tables, verdicts and rows of the pages are those of the files that were measured."""

import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks import result_tables as tables
from benchmarks.faults import run
from benchmarks.known import rows as known
from benchmarks.known.data import TASKS
from tests.quantifiers import every, none

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
        "A benchmark whose right answers are known",
    ],
)
def test_prose_about_a_comparison_has_no_figure_of_its_own(title):
    section = DOCS["results.md"].split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert section.count("<!-- end -->") >= 2
    prose = re.sub(r"<!-- [a-z ]+ -->\n.*?<!-- end -->", "", section, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`", "", prose).replace("probability\n0.2", "")
    assert re.findall(r"\d*\.\d+|\d+ points?", prose) == []


def test_prose_about_known_answers_holds_for_the_figures():
    rows = pages.read_rows("known_answer.json")
    counts, ranks = tables.told_apart(rows), tables.mean_ranks(rows)
    for method in ("guided", "unimodal losses", "RedCore"):
        assert counts[method][1] == 0, method
    better, _, settings = counts["guided"]
    assert better > settings / 2
    assert (counts["MMPareto"][1], counts["paper"][0]) == (1, 0)
    vectors = [own for (_, task), own in ranks.items() if task != "segmentation"]
    assert len(vectors) == 4
    for own in vectors:
        order = sorted(own, key=own.get)
        assert {"guided", "MRD uniform + guided"} <= set(order[:5])
        assert order[-1] == "paper"
    found = {(r["optimizer"], r["task"], r["scenario"], r["method"]): r for r in rows}

    def gains(method, scenario, task="classification", optimizer="sgd", score="score"):
        mean, half = found[optimizer, task, scenario, method][f"{score} - joint"]
        return mean - half, mean + half

    for method in ("CGGM", "constant", "random", "OGM", "AGM", "ungated"):
        assert gains(method, "a")[0] > 0, method
    held_back = [f"ungated rho 1{part}" for part in ("", " magnitude", " constant", " random")]
    for method in (*held_back, "ungated", "OGM", "OGM-GE", "AGM"):
        assert gains(method, "b")[1] < 0, method
    for method in ("ungated rho 1 direction", "CGGM", "MLA"):
        assert (gains(method, "b")[1] < 0) == (method == "MLA"), method
    for method in (
        "guided",
        "DGL",
        "G2D",
        "UME",
        "QMF",
        "MRD",
        "MRD uniform",
        "OPM",
        "Greedy on features",
    ):
        for optimizer in ("sgd", "adam"):
            assert gains(method, "d", optimizer=optimizer, score="without A")[0] > 10, method
    images = {
        m: gains(m, "d", "segmentation", score="without A")[0] for m in ranks["sgd", TASKS[2]]
    }
    assert images.pop("PASSION") > 60 > 10 > max(images.values())
    for method in ("PASSION", "RedCore"):
        assert gains(method, "a", "segmentation")[0] > 0
    for method, scenario in itertools.product(("UME", "QMF", "MLA", "late joint"), "ab"):
        assert gains(method, scenario, "segmentation")[1] < 0, method
    for method in (name for name in rows_of_cggm() if name != "paper"):
        for task in TASKS[:2]:
            assert gains(method, "a", task, "adam")[0] <= 0, method
    assert gains("DGL", "d", "regression", score="without A")[1] < 0


def test_prose_about_controls_holds_for_the_figures():
    table = tables.controls_tables(pages.read_rows("known_controls.json")).splitlines()
    heads = table[0].split(" | ")[1:]
    rows = {name.removeprefix("| "): cells for name, *cells in (x.split(" | ") for x in table[2:])}

    def told(name, column):
        text = rows[name][[head.rstrip(" |") for head in heads].index(column)]
        return text.strip(" |")[:3] if "**" in text else ""

    assert len(rows) == 17
    assert (told("OGM less constant", "(a) class."), told("OGM less constant", "(b) class.")) == (
        "",
        "**-",
    )
    assert told("OGM less shuffled", "(a) class.") == "**+"
    for control in ("constant", "shuffled"):
        assert told(f"AGM less {control}", "(a) class.") == "**+"
        assert told(f"AGM less {control}", "(b) class.") == "**-"
        assert told(f"G2D less {control}", "(a) class.") == "**+"
    columns = [head.rstrip(" |") for head in heads]
    for method in ("RedCore", "PMR"):
        assert none(told(f"{method} less constant", column) for column in columns)
    blending = [told("G-Blending less constant", column) for column in columns]
    assert [c for c, t in zip(columns, blending, strict=True) if t == "**+"] == [
        "(b) regr.",
        "(c) regr.",
    ]
    assert [c for c, t in zip(columns, blending, strict=True) if t == "**-"] == [
        "(a) class.",
        "(d) regr.",
    ]
    assert told("OPM less constant", "(d) regr.") == "**-"
    for column in ("(b) class.", "(c) class."):
        assert {told(f"OGM less {name}", column) for name in ("constant", "shuffled")} == {"**-"}
    assert [told("OPM less constant", f"({s}) class.") for s in "ab"] == ["**+"] * 2


def rows_of_cggm():
    return [name for name, row in known.CORE.items() if row.method == "CGGM"]


def test_the_shares_of_faults_that_were_noticed_are_those_of_the_figures():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "mutants.json").read_text())
    killable = found["tried"] - found["cannot_be"]
    assert found["noticed"] == killable == len(found["rows"])
    assert f"Of {found['tried']} faults, {found['cannot_be']} change nothing" in page
    assert f"of the other {killable} were" in page
    assert every(row["cannot_be"] for row in found["survivors"])
