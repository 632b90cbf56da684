"""Statistics and controls of the proof on numbers worked out by hand."""

import torch
from torch.testing import assert_close

from benchmarks.known import proof

SURE = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]
NOISE = [1.0, -1.0, 0.5, -0.5, 0.2, -0.2]


def rows(*gaps, scenario="a"):
    own = {"scenario": scenario, "task": "regression", "optimizer": "sgd"}
    return [own | {"differences": dict(zip(("joint", "random"), gap, strict=True))} for gap in gaps]


def test_holm_stops_at_the_first_that_is_not_sure_enough():
    from scipy import stats

    # mean 1, standard deviation 1.22: t is 2.0 and p 0.1; with 0.8 it is 3.06 and 0.028
    weak = [1.0 + 0.8 * x for x in (1.0, -1.0, 1.0, -1.0, 0.8, -0.8)]
    p = stats.ttest_1samp(weak, 0).pvalue
    assert 0.025 < p < 0.05
    # alone it is kept, beside one that is not sure it would have to be below 0.025
    assert proof.holm(rows((SURE, weak))) == {(0, "joint"), (0, "random")}
    assert proof.holm(rows((weak, NOISE))) == set()


def test_gains_are_marked_once_by_their_interval_and_twice_by_holm():
    assert proof.gain(SURE, kept=True).endswith("**")
    assert proof.gain(SURE).startswith("+1.00 ± 0.07*")
    assert proof.gain(NOISE) == "+0.00 ± 0.75"
    (head, _, first) = proof.table(rows((SURE, NOISE))).splitlines()
    assert head == "| guided heads less | joint | random |"
    assert first == "| (a) regr. SGD | +1.00 ± 0.07** | +0.00 ± 0.75 |"


def test_the_verdict_counts_cells(monkeypatch):
    monkeypatch.setattr(proof, "CONTROLS", ("random",))
    found = proof.verdict(
        [*rows((SURE, SURE), (SURE, NOISE)), *rows(([-1.0, -1.1], SURE), scenario="b")]
    )
    assert "Better than joint training in 2 of 3 cells, worse in 1;" in found
    assert "and all controls in 1 of the 2 cells of (a), (c) and (d)" in found
    assert "worse than joint training in 1 of the 1 cells of (b)" in found


def test_controls_replay_what_was_recorded():
    recorded = torch.tensor([[[0.5, 1.5], [1.0, 1.0]], [[0.2, 0.4], [0.4, 0.6]]])  # (S, steps, M)
    uniform, constant, random, shuffled = (proof.control(n, recorded) for n in proof.CONTROLS)
    assert_close(uniform.factors, torch.tensor([[1.0, 1.0], [0.4, 0.4]]))
    assert_close(constant.factors, torch.tensor([[0.75, 1.25], [0.3, 0.5]]))
    assert torch.equal(random.factors, recorded)
    assert shuffled.factors is None
    assert [s.shares for s in (uniform, constant, random, shuffled)] == [
        None, None, "shuffled", "shuffled",
    ]  # fmt: skip
    assert {s.nu for s in (uniform, constant, random, shuffled)} == {proof.GUIDED.nu}


def test_the_figure_shows_the_hardest_comparison_of_each_cell():
    chart = proof.figure(rows((SURE, NOISE)))
    (interval,) = chart.intervals
    assert interval.name.endswith("- random")
    assert interval.kind == "no difference"
