import numpy as np
import pytest

from cggm_seg.evaluation.lesions import FALSE_HD95, lesion_metrics
from cggm_seg.evaluation.scores import METRICS, case_metrics

UNIT = (1.0, 1.0, 1.0)
REGIONS = ("WT", "TC", "ET")


def volume(*boxes, shape=(40, 24, 24), value=3):
    """Boxes given by their corner and their size."""
    labels = np.zeros(shape, np.uint8)
    for corner, size in boxes:
        labels[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] = value
    return labels


BIG = ((4, 4, 4), (4, 4, 4))  # 64 voxels
FAR = ((26, 12, 12), (4, 4, 4))


def test_perfect_prediction_scores_one_and_zero():
    labels = volume(BIG, FAR)
    scores = lesion_metrics(labels, labels, UNIT)
    assert tuple(scores) == METRICS
    assert [scores[metric] for metric in METRICS] == [1, 1, 1, 0, 0, 0]


def test_one_lesion_is_scored_as_a_whole_volume():
    reference, prediction = volume(BIG), volume(((6, 4, 4), (4, 4, 4)))
    assert lesion_metrics(prediction, reference, UNIT) == case_metrics(prediction, reference, UNIT)


def test_missed_lesion_counts_as_much_as_the_found_one():
    scores = lesion_metrics(volume(BIG), volume(BIG, FAR), UNIT)
    for region in REGIONS:
        assert scores[f"dice_{region}"] == 0.5  # (1 + 0) / 2
        assert scores[f"hd95_{region}"] == 187  # (0 + 374) / 2


def test_false_lesion_of_one_voxel_counts_as_much_as_a_lesion():
    scores = lesion_metrics(volume(BIG, ((30, 20, 20), (1, 1, 1))), volume(BIG), UNIT)
    assert scores["dice_WT"] == 0.5
    assert scores["hd95_WT"] == 187


def test_mean_over_found_missed_and_false_lesions():
    # Found: half of the voxels of each agree, 2 voxels apart. Missed: one. False: two.
    reference = volume(BIG, FAR)
    prediction = volume(((6, 4, 4), (4, 4, 4)), ((30, 2, 20), (2, 2, 2)), ((36, 20, 2), (1, 1, 1)))
    scores = lesion_metrics(prediction, reference, UNIT)
    assert scores["dice_WT"] == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    assert scores["hd95_WT"] == pytest.approx((2 + 3 * 374) / 4)


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_parts_that_touch_once_grown_are_one_lesion(gap, lesions):
    # Each part grows by 3 voxels: over a gap of 6 they touch, over one of 7 they do not.
    second = ((8 + gap, 4, 4), (4, 4, 4))
    scores = lesion_metrics(volume(BIG), volume(BIG, second), UNIT)
    dice = {1: 2 * 64 / (64 + 128), 2: 0.5}[lesions]
    assert scores["dice_WT"] == pytest.approx(dice)


@pytest.mark.parametrize(("distance", "dice"), [(3, 2 * 64 / (64 + 72)), (4, 0.5)])
def test_component_within_reach_belongs_to_the_lesion(distance, dice):
    # 8 voxels beside the lesion: within 3 voxels they are part of its match, beyond they are false.
    beside = ((8 + distance - 1, 4, 4), (2, 2, 2))
    scores = lesion_metrics(volume(BIG, beside), volume(BIG), UNIT)
    assert scores["dice_WT"] == pytest.approx(dice)


def test_component_that_reaches_two_lesions_is_the_match_of_both():
    # Two lesions of 64 voxels, 8 apart, and one component over both and the gap: 256 voxels.
    reference = volume(BIG, ((16, 4, 4), (4, 4, 4)))
    scores = lesion_metrics(volume(((4, 4, 4), (16, 4, 4))), reference, UNIT)
    assert scores["dice_WT"] == pytest.approx(2 * 64 / (64 + 256))


def test_neighbors_over_a_corner_are_one_component():
    corner = volume(((30, 10, 10), (1, 1, 1)), ((31, 11, 11), (1, 1, 1)))
    scores = lesion_metrics(np.maximum(volume(BIG), corner), volume(BIG), UNIT)
    assert scores["dice_WT"] == 0.5  # one false component, not two


@pytest.mark.parametrize(("spacing", "dice"), [(UNIT, 1.0), ((1.5, 1.0, 1.0), 0.5)])
def test_small_lesions_are_not_scored_but_not_false_either(spacing, dice):
    # 5 x 5 x 2 = 50 voxels: 50 mm^3 are not scored, 75 mm^3 are.
    small = ((26, 12, 12), (5, 5, 2))
    reference = volume(BIG, small)
    assert lesion_metrics(volume(BIG), reference, spacing)["dice_WT"] == dice
    assert lesion_metrics(reference, reference, spacing)["dice_WT"] == 1


def test_empty_volumes():
    empty, labels = volume(), volume(BIG)
    assert set(lesion_metrics(empty, empty, UNIT).items()) == {
        *((f"dice_{region}", 1.0) for region in REGIONS),
        *((f"hd95_{region}", 0.0) for region in REGIONS),
    }
    for pair in ((empty, labels), (labels, empty)):
        scores = lesion_metrics(*pair, UNIT)
        assert (scores["dice_ET"], scores["hd95_ET"]) == (0, FALSE_HD95)


def test_regions_are_scored_apart():
    # ED around the core joins two cores to one whole tumor.
    reference = volume(((2, 4, 4), (30, 6, 6)), value=2)
    reference[4:8, 5:9, 5:9] = reference[26:30, 5:9, 5:9] = 3
    prediction = reference.copy()
    prediction[26:30, 5:9, 5:9] = 2
    scores = lesion_metrics(prediction, reference, UNIT)
    assert (scores["dice_WT"], scores["dice_TC"], scores["dice_ET"]) == (1, 0.5, 0.5)
    prediction[26:30, 5:9, 5:9] = 1
    scores = lesion_metrics(prediction, reference, UNIT)
    assert (scores["dice_TC"], scores["dice_ET"]) == (1, 0.5)


def test_place_in_the_volume_does_not_matter():
    reference, prediction = volume(BIG, FAR), volume(((5, 4, 4), (4, 4, 4)))
    moved = [np.pad(labels, 9) for labels in (prediction, reference)]
    assert lesion_metrics(*moved, UNIT) == lesion_metrics(prediction, reference, UNIT)


def test_volumes_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        lesion_metrics(volume(), volume(shape=(3, 3, 3)), UNIT)
