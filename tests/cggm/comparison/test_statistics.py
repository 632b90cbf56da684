import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm.comparison.statistics import (
    bootstrap_interval,
    compare,
    paired_difference,
    summarize,
)
from tests.cggm.comparison.runs import runs

JOINT = dict(enumerate([0.70, 0.74, 0.69, 0.73, 0.71, 0.72]))
GAINS = [0.010, 0.013, 0.008, 0.011, 0.009, 0.012]
BETTER = {seed: JOINT[seed] + gain for seed, gain in enumerate(GAINS)}


def test_mean_and_standard_deviation_of_the_sample():
    assert summarize([4.0, 1.0, 3.0, 2.0]).mean == 2.5
    assert summarize([4.0, 1.0, 3.0, 2.0]).sd == pytest.approx(math.sqrt(5 / 3))
    assert math.isnan(summarize([1.0]).sd)
    assert math.isnan(summarize([]).mean)


def test_interval_agrees_with_all_resamples():
    values = [0.0, 1.0, 2.0, 4.0, 8.0]
    ordered = sorted(map(fmean, itertools.product(values, repeat=5)))
    low, high = bootstrap_interval(values)
    # 3.1038 = sqrt(5 / 4) * 2.7764, Student's quantile: a tail of 0.000955, rank 3 of 3125 from
    # either end; 10,000 draws hit it within three deviations of 3.1 draws.
    assert ordered[0] <= low <= ordered[6]
    assert ordered[-7] <= high <= ordered[-1]
    assert (low, high) != (ordered[0], ordered[-1])


@given(st.integers(0, 999), st.floats(0.01, 100.0), st.floats(-10.0, 10.0))
@settings(max_examples=20, deadline=None)
def test_interval_moves_and_scales_with_the_values(seed, scale, shift):
    x = np.random.default_rng(seed).normal(size=6)
    low, high = bootstrap_interval(x)
    moved = bootstrap_interval(scale * x + shift)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6 * scale)


def test_coverage_of_five_differences_is_near_nominal():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=5)) for _ in range(300)]
    assert 0.89 <= np.mean([low <= 0.0 <= high for low, high in intervals]) <= 0.96


def test_interval_of_few_or_equal_values():
    assert all(map(math.isnan, bootstrap_interval([0.3])))
    assert bootstrap_interval([0.1, 0.2, 0.4]) == pytest.approx((0.1, 0.4))
    assert bootstrap_interval([0.5, 0.5, 0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_a_difference_that_is_large_against_its_spread_is_seen_despite_ties():
    low, high = bootstrap_interval([-0.25, -0.25, -0.25, -0.24, -0.22])
    assert -0.25 <= low < high < 0.0


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
    assert few.verdict == "no difference"
    alone = paired_difference({7: 1.0}, JOINT, lower_better=False)
    assert (alone.n, alone.verdict) == (0, "no difference")


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
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
