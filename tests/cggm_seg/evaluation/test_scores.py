import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance

from cggm_seg.evaluation.scores import METRICS, WORST_HD95, case_metrics

UNIT = (1.0, 1.0, 1.0)


def cube(start: tuple[int, int, int], side: int, value: int, shape=(12, 12, 12)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(low, low + side) for low in start)] = value
    return labels


def test_perfect_prediction_scores_one_and_zero():
    labels = cube((3, 3, 3), 5, 2)
    labels[4:7, 4:7, 4:7] = 3
    labels[5, 5, 5] = 1
    scores = case_metrics(labels, labels, UNIT)
    assert tuple(scores) == METRICS
    assert [scores[metric] for metric in METRICS] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("spacing", "distance"), [(UNIT, 2), ((1.5, 1, 1), 3)])
def test_shifted_cube_by_hand(spacing, distance):
    # 4 x 4 x 4 voxels, 2 rows apart: half of each overlaps, and of 56 surface voxels 16 lie 2 rows
    # away, more than 5 %.
    scores = case_metrics(cube((4, 4, 4), 4, 3), cube((2, 4, 4), 4, 3), spacing)
    for region in ("WT", "TC", "ET"):
        assert scores[f"dice_{region}"] == 0.5
        assert scores[f"hd95_{region}"] == pytest.approx(distance)


def test_hd95_passes_over_the_farthest_five_percent():
    # 99 voxels agree and one lies 50 mm away: the 95th percentile does not see it, Dice does.
    reference = np.zeros((100, 3, 60), np.uint8)
    reference[:99, 1, 1] = 2
    prediction = reference.copy()
    prediction[0, 1, 51] = 2
    scores = case_metrics(prediction, reference, UNIT)
    assert scores["hd95_WT"] == 0
    assert scores["dice_WT"] == pytest.approx(2 * 99 / 199)


def test_regions_are_nested():
    # Enhancing tumor predicted as necrosis: the core is right, the enhancing tumor is missed.
    scores = case_metrics(cube((4, 4, 4), 4, 1), cube((4, 4, 4), 4, 3), UNIT)
    assert (scores["dice_WT"], scores["dice_TC"], scores["dice_ET"]) == (1, 1, 0)
    assert (scores["hd95_WT"], scores["hd95_TC"], scores["hd95_ET"]) == (0, 0, WORST_HD95)


@pytest.mark.parametrize(
    ("found", "wanted", "dice", "distance"),
    [(0, 0, 1, 0), (1, 0, 0, WORST_HD95), (0, 1, 0, WORST_HD95)],
)
def test_empty_regions(found, wanted, dice, distance):
    prediction, reference = (cube((5, 5, 5), side, 3) for side in (found, wanted))
    scores = case_metrics(prediction, reference, UNIT)
    for region in ("WT", "TC", "ET"):
        assert (scores[f"dice_{region}"], scores[f"hd95_{region}"]) == (dice, distance)


def test_worst_distance_is_the_diagonal_of_a_brats_volume():
    assert pytest.approx(np.linalg.norm((240, 240, 155)), abs=1e-4) == WORST_HD95


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges")
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), border=st.booleans())
def test_crop_leaves_the_distance_as_it_is(seed, border):
    rng = np.random.default_rng(seed)
    prediction, reference = np.zeros((2, 14, 13, 12), np.uint8)
    inner = slice(0 if border else 3, 9)
    for labels in (prediction, reference):
        labels[inner, inner, inner] = 3 * (rng.random((inner.stop - inner.start,) * 3) < 0.3)
        labels[4, 4, 4] = 3
    spacing = (1.0, 1.3, 2.0)
    whole = compute_hausdorff_distance(
        torch.from_numpy(prediction == 3)[None, None],
        torch.from_numpy(reference == 3)[None, None],
        include_background=True,
        percentile=95,
        spacing=list(spacing),
    )
    assert case_metrics(prediction, reference, spacing)["hd95_ET"] == pytest.approx(float(whole))


def test_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        case_metrics(np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8), UNIT)
