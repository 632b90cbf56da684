import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cggm.comparison.missing import missing_table, subset_mean_table
from cggm.comparison.records import FinishedRun
from cggm.comparison.statistics import can_be_ranked
from cggm.comparison.tables import (
    ablation_table,
    cost_table,
    heads_table,
    known_tasks,
    performance_table,
    rank_table,
    verdict_table,
)
from cggm.display.tables import DASH, to_csv, to_latex, to_markdown
from cggm.reports.tasks import Task
from tests.cggm.comparison.runs import run, runs

SMALL = [
    *runs("joint", [0.70, 0.72, 0.74], simulated=True),
    *runs("a_b", [0.74, 0.76, None], simulated=True),
    *runs("plain", [None, None, 0.70], simulated=True),
]


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def marks(table, column):
    return [row[column].mark for row in table.rows]


def test_markdown_of_a_small_case():
    records = [record for record in SMALL if record.method != "plain"]
    expected = """**Performance on mosi (SIMULATED)**

| method | accuracy                 | accuracy - joint | verdict on accuracy   |
| ------ | ------------------------ | ---------------- | --------------------- |
| joint  | <ins>0.720 ± 0.020</ins> | ~                | ~                     |
| a_b    | **0.750 ± 0.014 (n=2)**  | +0.0400          | not decided (2 seeds) |

Mean ± standard deviation over seeds; n where a seed has no value. Differences to joint are paired \
by seed, with a 95 % bootstrap interval; one that contains zero is no difference. Below 5 common \
seeds nothing is decided.
"""
    table = performance_table(records, "mosi", ["acc"])
    assert to_markdown(table) == expected.replace("~", DASH)


def test_best_and_second_follow_the_direction():
    means = {"a": 0.5, "b": 0.3, "c": 0.4, "d": 0.3}
    records = [record for name, x in means.items() for record in runs(name, [x, x], "mae")]
    assert marks(performance_table(records, "mosi", ["mae"]), 1) == ["", "best", "second", "best"]


def test_a_single_seed_has_neither_marks_nor_ranks():
    records = [*runs("a", [0.5]), *runs("b", [0.3])]
    assert marks(performance_table(records, "mosi", ["acc"]), 1) == ["", ""]
    assert not can_be_ranked(records)
    assert can_be_ranked([*records, *runs("c", [0.1, 0.2])])
    assert not can_be_ranked(runs("a", [0.5, 0.6]))


def test_what_one_test_sample_makes_is_not_marked():
    means = {"a": 0.900, "b": 0.905, "c": 0.880, "d": 0.895, "e": 0.875}
    records = [r for name, x in means.items() for r in runs(name, [x, x], samples=100)]
    expected = ["best", "best", "second", "best", "second"]
    assert marks(performance_table(records, "mosi", ["acc"]), 1) == expected
    few = [r for r in records if r.method in "abd"]
    assert marks(performance_table(few, "mosi", ["acc"]), 1) == ["", "", ""]
    many = [replace(record, samples=1000) for record in records]
    expected = ["second", "best", "", "", ""]
    assert marks(performance_table(many, "mosi", ["acc"]), 1) == expected
    errors = [r for name, x in means.items() for r in runs(name, [x, x], "mae", samples=100)]
    expected = ["", "", "second", "", "best"]  # of an error one sample may make anything
    assert marks(performance_table(errors, "mosi", ["mae"]), 1) == expected


def test_verdicts_of_all_tasks_in_one_table():
    tasks = [Task(name, Path(), ("text",), ("acc", "mae")) for name in ("mosi", "other")]
    records = [
        *runs("joint", [0.7] * 5),
        *runs("up", [0.8, 0.81, 0.79, 0.8, 0.8]),
        *runs("unimodal_text", [0.1] * 5),
        *runs("joint", [0.5], task="other"),
        *runs("up", [0.4], task="other"),
    ]
    table = verdict_table(records, tasks)
    assert [[row[k] for k in (0, 1, 4)] for row in texts(table)] == [
        ["mosi", "up", "better"],
        ["other", "up", "not decided (1 seed)"],
    ]
    assert verdict_table(runs("joint", [0.5]), tasks) is None


def test_a_task_shows_the_metrics_and_knows_the_modalities_of_its_trainings():
    table = {
        name: Task(name, Path(), ("text",), ("acc", "mae", "dice")) for name in ("mosi", "other")
    }
    heads = {"lab": {"mae": 0.1}, "ecg": {"mae": 0.2}}
    records = [
        *runs("joint", [0.3], metric="mae", heads=heads),
        *runs("unimodal_lab", [None, 0.4], metric="mae"),
        *runs("up", [0.2], metric="mae"),
        *runs("joint", [1.0], metric="hd95", task="other"),
    ]
    numbers, other = known_tasks(records, table)
    assert (numbers.metrics, numbers.modalities) == (("mae",), ("text", "lab", "ecg"))
    assert other == table["other"], "nothing of its own was measured"
    rows = texts(verdict_table(records, [numbers]))
    assert [row[1] for row in rows] == ["up"], "a modality alone is no method"


def test_verdicts_of_five_seeds():
    joint = [0.70, 0.74, 0.69, 0.73, 0.71]
    better = [v + g for v, g in zip(joint, [0.010, 0.013, 0.008, 0.011, 0.009], strict=True)]
    records = [*runs("joint", joint), *runs("same", joint), *runs("up", better)]
    table = performance_table(records, "mosi", ["acc"])
    assert [row[3] for row in texts(table)] == [DASH, "no difference", "better"]
    assert texts(table)[1][2] == "+0.0000 [+0.0000, +0.0000]"
    assert "SIMULATED" not in table.title


def test_without_the_reference_there_are_no_differences():
    table = performance_table(runs("ogm", [0.5]), "mosi", ["acc", "hd95"])
    assert texts(table) == [["ogm", "0.500", DASH, DASH, DASH, DASH, DASH]]


def test_ablation_has_its_four_rows_even_where_one_is_missing():
    records = [*runs("joint", [0.5]), *runs("cggm", [0.6]), *runs("ogm", [0.7])]
    table = ablation_table(records, "mosi", ["acc"])
    names = ["joint", "cggm_magnitude", "cggm_direction", "cggm"]
    assert [row[0] for row in texts(table)] == names
    assert texts(table)[1] == ["cggm_magnitude", DASH, DASH, DASH]
    assert table.title == "Ablation of CGGM on mosi"


def test_heads_under_unimodal_joint_and_cggm_training():
    heads = {"text": {"acc": 0.6}, "audio": {"acc": 0.5}}
    records = [
        run("joint", 0, {"acc": 0.9}, heads=heads),
        run("cggm", 0, {"acc": 0.9}, heads=heads | {"audio": {"acc": None}}),
        run("unimodal_text", 0, {"acc": 0.7}),
    ]
    assert texts(heads_table(records, "mosi", "acc")) == [
        ["unimodal", "0.700", DASH],
        ["joint", "0.600", "0.500"],
        ["cggm", "0.600", DASH],
    ]
    assert [row[0] for row in texts(heads_table(records[1:2], "mosi", "acc"))] == ["cggm"]


def test_missing_modalities_come_fewest_first():
    subsets = {"a+b": {"acc": 0.9}, "a": {"acc": 0.4}, "b": {"acc": None}}
    records = [run("joint", 0, {}, subsets=subsets), run("plain", 0, {})]
    table = missing_table(records, "mosi", "acc")
    assert table.columns == ("method", "a", "b", "a+b")
    assert texts(table) == [["joint", "0.400", DASH, "0.900"]]


def test_mean_over_all_subsets_needs_all_of_them():
    def of(method, seed, *values):
        subsets = {name: {"acc": value} for name, value in zip(("a", "b"), values, strict=False)}
        return run(method, seed, {"acc": 0.9}, subsets=subsets)

    records = [of("joint", 0, 0.3, 0.6), of("mrd", 0, 0.6, 0.9), of("mrd", 1, 0.4, 0.8)]
    records += [of("ogm", 0, 0.6, None), of("ogm", 1, 0.6), run("plain", 0, {"acc": 0.9})]
    table = subset_mean_table(records, "mosi", ["acc"])
    assert table.title == "Mean over the 3 subsets of modalities on mosi"
    # (.3 + .6 + .9) / 3; (.6 + .9 + .9) / 3 = .8 and (.4 + .8 + .9) / 3 = .7
    assert texts(table) == [["joint", "0.600 (n=1)"], ["mrd", "0.750 ± 0.071"], ["ogm", DASH]]


def test_cost_is_the_median_of_the_ratios_of_each_seed():
    def timed(method, seconds, mb):
        return [run(method, i, {}, seconds=s, mb=mb) for i, s in enumerate(seconds)]

    records = [
        *timed("plain", [10.0, 20.0, 40.0], 100.0),
        *timed("cggm", [15.0, 24.0, 44.0], 130.0),
    ]
    records += timed("ogm", [12.0], None)
    assert texts(cost_table(records, "mosi")) == [
        ["plain", "20.0", "1.00", "100.0", "1.00"],
        ["cggm", "24.0", "1.20", "130.0", "1.30"],
        ["ogm", "12.0", "1.20", DASH, DASH],
    ]


def test_rank_table_says_which_average_is_not_comparable():
    records = [*runs("a", [0.9]), *runs("b", [0.8]), *runs("b", [0.5], "dice", task="brats")]
    table = rank_table(records, {"mosi": ["acc"], "brats": ["dice"]})
    assert table.columns == ("method", "average rank", "mosi acc", "brats dice")
    assert texts(table) == [["b", "1.50", "2", "1"], ["a", "1.00 (1 of 2 tasks)", "1", DASH]]


BUILDERS = [
    lambda records: performance_table(records, "mosi", ["acc", "hd95"]),
    lambda records: ablation_table(records, "mosi", ["acc"]),
    lambda records: heads_table(records, "mosi", "acc"),
    lambda records: missing_table(records, "mosi", "acc"),
    lambda records: subset_mean_table(records, "mosi", ["acc"]),
    lambda records: cost_table(records, "mosi"),
    lambda records: rank_table(records, {"mosi": ["acc"]}),
]
HEADS = {"text": {"acc": 0.5}}
FULL = [
    FinishedRun("mosi", name, s, 2.0, 5.0, True, {"acc": 0.5 + s}, HEADS, HEADS, "")
    for name in ("joint", "a_b", "cggm")
    for s in range(3)
]


@pytest.mark.parametrize("build", BUILDERS)
def test_every_table_says_that_its_data_are_simulated(build):
    assert build(FULL).title.endswith("(SIMULATED)")


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("records", [[], SMALL, FULL], ids=["none", "small", "full"])
def test_latex_is_balanced_and_escaped(build, records):
    latex = to_latex(build(records))
    plain = re.sub(r"\\[{}$_%&#]", "", latex)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[_%#±∞\u2013]", plain)
    columns = len(re.search(r"tabular}{(l?c*)}", latex).group(1))
    rows = [line for line in plain.splitlines() if line.endswith(r"\\")]
    assert rows
    assert {row.count("&") + 1 for row in rows} == {columns}


def test_csv_reads_back():
    title, *lines = to_csv(performance_table(SMALL, "mosi", ["acc"])).splitlines()
    assert title == "# Performance on mosi (SIMULATED)"
    rows = [*csv.reader(io.StringIO("\n".join(lines)))]
    assert rows[0] == ["method", "acc", "acc - joint", "verdict on acc"]
    assert rows[3] == ["plain", "0.700 (n=1)", "-0.0400", "not decided (1 seed)"]
