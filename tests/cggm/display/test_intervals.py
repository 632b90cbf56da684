import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm.display.intervals import bootstrap_interval, bootstrap_intervals
from tests.quantifiers import every


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
@settings(max_examples=20)
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
    assert every(map(math.isnan, bootstrap_interval([0.3])))
    assert every(map(math.isnan, bootstrap_interval([0.1, 0.2, 0.4, 0.5])))
    assert bootstrap_interval([0.1, 0.2, 0.4, 0.4, 0.5])[0] >= 0.1
    assert bootstrap_interval([0.5, 0.5, 0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_a_difference_that_is_large_against_its_spread_is_seen_despite_ties():
    low, high = bootstrap_interval([-0.25, -0.25, -0.25, -0.24, -0.22])
    assert -0.25 <= low < high < 0.0


def test_samples_that_are_alike_give_the_interval_of_as_many_single_ones():
    right = np.repeat([1.0, 0.0], [70, 30])
    single = bootstrap_interval(right)

    def share(counts):
        return {"acc": counts[:, 0] / counts.sum(1)}

    found = bootstrap_intervals(share, [70, 30])
    assert found["acc"] == pytest.approx(single, abs=0.011)  # one sample of 100
    # The normal approximation: 0.7 -+ 1.96 sqrt(0.7 * 0.3 / 100).
    assert found["acc"] == pytest.approx((0.610, 0.790), abs=0.015)


def test_fewer_than_five_samples_have_no_interval():
    for few in ([1], [1, 1, 1, 1], [4], [3, 1]):
        assert bootstrap_intervals(lambda counts: {"n": counts.sum(1)}, few) == {}
    assert bootstrap_intervals(lambda counts: {"n": counts.sum(1)}, [4, 1]) == {"n": (5.0, 5.0)}


def test_blocks_of_resamples_are_drawn_as_one(monkeypatch):
    values = np.random.default_rng(1).normal(size=30)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("cggm.display.intervals._AT_ONCE", 4000)  # 133 resamples a block
    assert bootstrap_interval(values) == pytest.approx(whole, abs=1e-12)
