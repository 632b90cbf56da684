from functools import cache
from itertools import combinations

import numpy as np
import pytest

from cggm_seg.data.cases import MODALITIES
from cggm_seg.verification.modalities import modality_looks, swapped_modalities
from tests.cggm_seg.simulated import simulated_case


@cache
def looks(index, order=(0, 1, 2, 3), labelled=True):
    images, classes = simulated_case(index)
    return modality_looks([images[k] for k in order], classes if labelled else None)


@pytest.fixture(scope="module")
def cohort():
    return {str(index): looks(index) for index in range(20)}


def swapped(one, other):
    order = list(range(4))
    order[one], order[other] = other, one
    return tuple(order)


@pytest.mark.parametrize("count", [5, 8, 20])
def test_clean_cohorts_raise_no_alarm(cohort, count):
    assert swapped_modalities(dict(list(cohort.items())[:count])) == {}
    assert swapped_modalities({str(k): looks(k, labelled=False) for k in range(count)}) == {}


@pytest.mark.parametrize("pair", [*combinations(range(4), 2)], ids=str)
def test_any_exchange_in_any_case_is_found_and_named(cohort, pair):
    order = swapped(*pair)
    expected = tuple(MODALITIES[k] for k in order)
    for index in range(20):
        damaged = {**cohort, str(index): looks(index, order)}
        assert swapped_modalities(damaged) == {str(index): expected}


def test_cycle_of_three_names_what_each_image_is(cohort):
    damaged = {**cohort, "4": looks(4, (1, 2, 0, 3))}
    assert swapped_modalities(damaged) == {"4": ("t1ce", "t1", "flair", "t2")}


def test_several_cases_at_once(cohort):
    damaged = {str(k): looks(k, swapped(1, 2)) for k in range(6)}
    assert set(swapped_modalities({**cohort, **damaged})) == set(damaged)


def test_four_cases_say_nothing(cohort):
    four = {str(k): looks(k, swapped(0, 3) if k == 0 else (0, 1, 2, 3)) for k in range(4)}
    assert swapped_modalities(four) == {}


def test_gain_and_offset_change_nothing():
    images, classes = simulated_case(0)
    brighter = [np.where(image, 3 * image + 7, 0) for image in images]
    expected, found = (np.array(x, float) for x in (looks(0), modality_looks(brighter, classes)))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_images_that_say_nothing():
    flat = [np.ones((9, 9, 9), np.int16)] * 4
    assert modality_looks(flat, None) == [[None] * 16] * 4
    assert swapped_modalities({str(k): modality_looks(flat, None) for k in range(6)}) == {}
