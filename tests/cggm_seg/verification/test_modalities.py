from functools import cache
from itertools import combinations

import numpy as np
import pytest

from cggm_seg.data.cases import MODALITIES
from cggm_seg.verification.modalities import modality_statistics, swapped_modalities
from tests.cggm_seg.simulated import simulated_case


@cache
def statistics(index, order=(0, 1, 2, 3), labelled=True):
    images, classes = simulated_case(index)
    return modality_statistics([images[k] for k in order], classes if labelled else None)


@pytest.fixture(scope="module")
def cohort():
    return {str(index): statistics(index) for index in range(20)}


def swapped(one, other):
    order = list(range(4))
    order[one], order[other] = other, one
    return tuple(order)


@pytest.mark.parametrize("count", [5, 8, 20])
def test_clean_cohorts_raise_no_alarm(cohort, count):
    assert swapped_modalities(dict(list(cohort.items())[:count])) == {}
    assert swapped_modalities({str(k): statistics(k, labelled=False) for k in range(count)}) == {}


@pytest.mark.parametrize("pair", [*combinations(range(4), 2)], ids=str)
def test_any_exchange_in_any_case_is_found_and_named(cohort, pair):
    order = swapped(*pair)
    expected = tuple(MODALITIES[k] for k in order)
    for index in range(20):
        damaged = {**cohort, str(index): statistics(index, order)}
        assert swapped_modalities(damaged) == {str(index): expected}


def test_cycle_of_three_names_what_each_image_is(cohort):
    damaged = {**cohort, "4": statistics(4, (1, 2, 0, 3))}
    assert swapped_modalities(damaged) == {"4": ("t1ce", "t1", "flair", "t2")}


def test_several_cases_at_once(cohort):
    damaged = {str(k): statistics(k, swapped(1, 2)) for k in range(6)}
    assert set(swapped_modalities({**cohort, **damaged})) == set(damaged)


def test_four_cases_say_nothing(cohort):
    four = {str(k): statistics(k, swapped(0, 3) if k == 0 else (0, 1, 2, 3)) for k in range(4)}
    assert swapped_modalities(four) == {}


def test_gain_and_offset_change_nothing():
    images, classes = simulated_case(0)
    brighter = [np.where(image, 3 * image + 7, 0) for image in images]
    found = np.array(modality_statistics(brighter, classes), float)
    np.testing.assert_allclose(found, np.array(statistics(0), float), atol=2e-3)


def test_images_that_say_nothing():
    flat = [np.ones((9, 9, 9), np.int16)] * 4
    assert modality_statistics(flat, None) == [[None] * 16] * 4
    assert swapped_modalities({str(k): modality_statistics(flat, None) for k in range(6)}) == {}
