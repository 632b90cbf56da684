import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm.comparison.statistics import (
    compare,
    paired_difference,
    spread,
)
from tests.cggm.comparison.runs import runs

JOINT = dict(enumerate([0.70, 0.74, 0.69, 0.73, 0.71, 0.72]))
GAINS = [0.010, 0.013, 0.008, 0.011, 0.009, 0.012]
BETTER = {seed: JOINT[seed] + gain for seed, gain in enumerate(GAINS)}


def test_mean_and_standard_deviation_of_the_sample():
    assert spread([4.0, 1.0, 3.0, 2.0]).mean == 2.5
    assert spread([4.0, 1.0, 3.0, 2.0]).sd == pytest.approx(math.sqrt(5 / 3))
    assert math.isnan(spread([1.0]).sd)
    assert math.isnan(spread([]).mean)


def test_identical_runs_do_not_differ():
    same = paired_difference(JOINT, JOINT, lower_better=False)
    assert (same.n, same.mean, same.low, same.high) == (6, 0.0, 0.0, 0.0)
    assert same.verdict == "no difference"


def test_direction_decides_what_a_gain_is():
    gain = paired_difference(BETTER, JOINT, lower_better=False)
    assert gain.mean == pytest.approx(0.0105)
    assert 0.0 < gain.low < gain.mean < gain.high
    assert gain.verdict == "better"
    assert paired_difference(BETTER, JOINT, lower_better=True).verdict == "worse"
    assert paired_difference(JOINT, BETTER, lower_better=False).verdict == "worse"
    assert paired_difference(JOINT, BETTER, lower_better=True).verdict == "better"


def test_equal_gains_are_a_difference():
    shifted = {seed: value + 0.1 for seed, value in JOINT.items()}
    assert paired_difference(shifted, JOINT, lower_better=False).verdict == "better"


def test_only_common_seeds_count_and_four_are_too_few():
    reference = {seed: JOINT[seed] for seed in range(4)} | {9: 100.0}
    few = paired_difference(BETTER, reference, lower_better=False)
    assert few.n == 4
    assert few.mean == pytest.approx(0.0105)
    assert few.verdict == "not decided"
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    alone = paired_difference({7: 1.0}, JOINT, lower_better=False)
    assert (alone.n, alone.verdict) == (0, "not decided")


@given(st.permutations(range(6)))
@settings(max_examples=20)
def test_the_names_of_the_seeds_do_not_matter(order):
    def renamed(values):
        return {order[seed]: value for seed, value in values.items()}

    moved = paired_difference(renamed(BETTER), renamed(JOINT), lower_better=False)
    assert moved == paired_difference(BETTER, JOINT, lower_better=False)


def test_every_method_but_the_reference_is_compared():
    records = [*runs("joint", JOINT.values(), "mae"), *runs("cggm", BETTER.values(), "mae")]
    found = compare(records, "mae")
    assert list(found) == ["cggm"]
    assert found["cggm"].verdict == "worse"
    assert compare(records, "mae", reference="absent")["cggm"].n == 0
