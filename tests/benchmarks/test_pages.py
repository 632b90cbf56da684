"""Pages that are written from files, and sentences told from records, worked out by hand."""

import json
import math

from benchmarks import pages, verdicts
from benchmarks import result_tables as tables
from benchmarks.known.answer import interval
from cggm.comparison.records import FinishedRun, read_records


def run(task, method, seed, every, one, key="acc"):
    metrics = {key: every} | (
        {f"dice_{n}": every for n in ("WT", "TC", "ET")} if "d" in key else {}
    )
    fewer = dict.fromkeys(metrics, one)
    return FinishedRun(
        task, method, seed, 1.0, 1.0, key != "acc", metrics, {"a": fewer}, {}, f"runs/{seed}"
    )


def brats(method, *pairs):
    return [run("brats", method, i, *pair, "dice_mean") for i, pair in enumerate(pairs)]


SEGMENTED = [
    *brats("joint", (0.9, 0.3), (0.9, 0.5)),
    *brats("mrd", (0.8, 0.7), (0.88, 0.8)),
    *brats("cggm", (0.91, 0.3), (0.91, 0.5)),
]


def test_blocks_and_rows_are_replaced_and_nothing_else():
    page = "a\n<!-- x -->\nold\nolder\n<!-- end -->\nb\n| first | 1 |\n| other | 1 |\n"
    page = pages.with_blocks(page, {"x": "new", "y": "never"})
    assert pages.with_rows(page, ["| first | 2 | 3 |"]) == (
        "a\n<!-- x -->\nnew\n<!-- end -->\nb\n| first | 2 | 3 |\n| other | 1 |\n"
    )


def comparison(folder, arguments, records):
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"arguments": arguments}))
    lines = [json.dumps(vars(record)) for record in records]
    (folder / "runs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_comparison_takes_the_place_of_older_rows_of_its_tasks(tmp_path):
    old = [run("htad", "joint", 0, 0.5, 0.4), run("brats", "joint", 7, 0.1, 0.1)]
    comparison(tmp_path / "old", [], old)
    file = tmp_path / pages.MISSING
    file.write_text((tmp_path / "old" / "runs.jsonl").read_text())
    new = comparison(tmp_path / "new", ["--protocol", "missing"], SEGMENTED)
    assert pages.take(new, tmp_path) == file
    assert read_records(file) == [old[0], *SEGMENTED]
    whole = [run("mfeat", "umt", 0, 0.9, 0.5)]
    told = comparison(tmp_path / "whole", ["--max_epochs", "8"], whole)
    assert pages.take(told, tmp_path) == tmp_path / pages.MFEAT
    assert read_records(tmp_path / pages.MFEAT) == whole


def test_the_command_names_each_method_once():
    names = ("unimodal_pix", "unimodal_fou", "unimodal_losses", "joint")
    records = [run("mfeat", name, seed, 0.5, 0.5) for seed in range(2) for name in names]
    text = pages.command(records, "--task mfeat")
    assert "compare.py --task mfeat --seeds 2 --output comparison --methods" in text
    assert text.splitlines()[-2] == "unimodal,unimodal_losses,joint"


def test_dice_over_subsets_and_differences_by_seed():
    joint, mrd, cggm = tables.brats_table(SEGMENTED).splitlines()[2:]
    # means over two subsets: 0.6 and 0.7 for joint training, 0.75 and 0.84 for mrd
    assert joint.startswith("| joint | 0.900 | 0.650 |  | **-0.145 ± 0.064** | 0.650 |")
    assert mrd.startswith("| mrd | 0.840 | 0.795 | **+0.145 ± 0.064** |  | 0.795 |")
    assert cggm.endswith("| 0.655 | 0.655 | 0.655 | 2 |")
    one = [r for r in SEGMENTED if r.seed == 0]
    assert "| mrd | 0.800 | 0.750 | +0.150 |  |" in tables.brats_table(one)


def test_each_task_is_told_by_its_own_metric():
    records = [
        run("mosi", n, s, 0.5, x, "mae")
        for n, x in (("joint", 0.9), ("guided", 0.7))
        for s in (0, 1)
    ]
    records += [run("mosi", "mrd_uniform", s, 0.5, 0.8, "mae") for s in (0, 1)]
    assert tables.lacking_at_test_table(records).splitlines()[3] == (
        "| guided | 0.500 | 0.600 | **-0.100 ± 0.000** | **-0.050 ± 0.000** |"
    )


def test_sentences_about_missing_sequences():
    over, every = verdicts.missing_verdict(SEGMENTED, "dice_mean", "mrd", 1, 3).splitlines()
    assert over.startswith("- **brats, over the subsets**: ")
    assert "`mrd` has the highest mean, 0.795; against `joint` (0.650) better: `mrd` +0.145" in over
    assert "`cggm` has the highest mean, 0.910; against `joint` (0.900) better: `cggm`" in every
    assert "worse: none; not told from it: `mrd` -0.060 ± 0.508" in every
    row = verdicts.brats_row(SEGMENTED)
    assert (
        "| `mrd` | mean Dice over 15 subsets 0.795 for 0.650; with all four 0.840 for 0.900" in row
    )
    assert row.endswith("2 seeds | over the subsets, with all four: `cggm` 0.655, 0.910 |")


def test_sentences_about_all_modalities():
    def seeds(method, gain, one=0.5):
        return [run("mfeat", method, s, 0.9 + gain + s / 1000, one) for s in range(5)]

    records = [*seeds("unimodal_a", -0.3), *seeds("joint", 0), *seeds("joint_late", -0.04)]
    records += [*seeds("qmf", 0.02), *seeds("ogm", 0.0), *seeds("mrd", 0.0, 0.8)]
    every, some = verdicts.complete_verdict(records).splitlines()
    assert "better `qmf` +2.0 [+2.0, +2.0]; worse `joint_late` -4.0 [-4.0, -4.0]" in every
    assert every.endswith("no difference shown for 2 of 4.")
    assert "better `mrd` +15.0 [+15.0, +15.0], `qmf` +1.0" in some
    row = verdicts.complete_row(records)
    assert "| `qmf` | +2.0 [+2.0, +2.0] points | late fusion as such, `joint_late`: -4.0" in row
    few = [record for record in records if record.seed < 2]
    row = verdicts.complete_row(few)
    assert row.endswith(
        "| none; `joint` | no difference shown | late fusion as such, `joint_late`: -4.0 |"
    )


def test_the_row_of_classes_where_any_modality_may_be_missing():
    pairs = {
        "joint": (0.9, 0.5),
        "guided": (0.9, 0.7),
        "mrd_uniform": (0.8, 0.9),
        "ume": (0.7, 0.7),
    }
    records = [run("htad", n, s, *pair) for n, pair in pairs.items() for s in range(2)]
    assert verdicts.subsets_row(records).split(" | ")[1:] == [
        "htad: `mrd_uniform` 85.0, `guided` 80.0",
        "`guided`, points of the mean over subsets: htad: **+10.0 ± 0.0**",
        "htad: `ume` 70.0 |",
    ]


def test_the_verdict_on_dense_forms_counts_columns():
    scores = {
        "joint": (50, 20), "even pass": (40, 30), "by level": (45, 40),
        "uniform": (44, 30), "constant": (44, 40), "random": (44, 20),
    }  # fmt: skip
    rows = [
        {"scenario": "a", "form": form, "scores": {"score": [x, x], "without A": [y, y]}}
        for form, (x, y) in scores.items()
    ]
    first, second = verdicts.dense_verdict(rows).splitlines()
    assert first.endswith(
        ": even pass: better in 1, worse in 1 of 2; by level: better in 1, worse in 1 of 2."
    )
    # without a modality it is better than joint training, but not than its constant weights
    assert (
        "all its controls in 0 of 2 columns; better than the even pass in 2, worse in 0" in second
    )


def known(method, scenario, gaps):
    """A row of the benchmark with a known answer, of two seeds."""
    judged = "without A" if scenario == "d" else "score"
    keys = {"task": "regression", "scenario": scenario, "optimizer": "sgd", "method": method}
    gap = (None, None) if None in gaps else interval(gaps)
    other = {"score - joint": (-1.0, 0.5)} if scenario == "d" and method != "joint" else {}
    found = {judged: 50.0, f"{judged} - joint by seed": gaps, f"{judged} - joint": gap}
    return keys | {"score - joint": (0.0, 0.0)} | found | other


KNOWN = [
    known("joint", "a", [0.0, 0.0]),
    known("OGM", "a", [1.0, 2.0]),
    known("AGM", "a", [None, 3]),
    known("joint", "d", [0.0, 0.0]),
    known("OGM", "d", [1.1, 1.0]),
    known("AGM", "d", [-9, -9.1]),
]


def test_ranks_are_means_over_scenarios_and_seeds():
    assert tables.rank_table(KNOWN).splitlines() == [
        "| mean rank | SGD regr. (3) | better | worse | of |",
        "|---|---|---|---|---|",
        "| joint | 2.2 | - | - | - |",  # 2, 3, 2, 2
        "| OGM | 1.2 | 1 | 0 | 2 |",  # 1, 2, 1, 1; the interval of 1 and 2 holds zero
        "| AGM | 2.5 | 0 | 2 | 2 |",  # 3, 1, 3, 3; it diverged in (a)
    ]


def test_one_seed_tells_nothing_apart():
    one = [known("joint", "a", [0.0]), known("OGM", "a", [5.0]) | {"score - joint": (5.0, None)}]
    assert tables.told_apart(one) == {"OGM": (0, 0, 1)}
    assert tables.known_tables(one).splitlines()[3] == "| OGM | +5.0 |"


def test_sentences_about_known_answers():
    ranks, never, behind, with_a = verdicts.known_verdict(KNOWN, first=2).splitlines()
    assert with_a.endswith("worse: OGM (1 of 1), AGM (1 of 1).")
    assert "have OGM (1.2), joint (2.2); joint training is number 2 of 3." in ranks
    assert never.endswith("worse in none**: OGM (1 of 2).")
    assert behind.endswith("worse than better**: AGM (0 better, 2 worse).")


def test_controls_are_told_from_their_methods_by_seed():
    controls = [known("OGM: constant", "a", [0.5, 1.5]), known("AGM: constant", "a", [1.0, 2.0])]
    assert tables.controls_tables([*KNOWN, *controls]).splitlines() == [
        "| SGD | (a) regr. |",
        "|---|---|",
        "| OGM less constant | **+0.5 ± 0.0** |",
        "| AGM less constant | diverged |",
    ]


def test_a_gap_of_one_seed_has_no_interval():
    assert tables.gap_text((0.1, math.inf)) == "+0.100"
    assert tables.gap_text((0.1, 0.05)) == "**+0.100 ± 0.050**"
