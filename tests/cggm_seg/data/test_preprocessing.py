import numpy as np
import pytest

from cggm_seg.data.preprocessing import brain_box, intensity_statistics, to_int16, zscore


def test_box_encloses_the_voxels_of_all_modalities():
    images = np.zeros((2, 8, 9, 10), np.int16)
    images[0, 2, 3, 4] = 5
    images[1, 6, 3, 1] = -5
    assert brain_box(images) == (slice(2, 7), slice(3, 4), slice(1, 5))


def test_box_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="all voxels are zero"):
        brain_box(np.zeros((1, 2, 2, 2)))


def test_statistics_ignore_the_background():
    images = np.array([[0, 0, 2, 4], [0, 5, 5, 0]], np.int16)
    np.testing.assert_array_equal(intensity_statistics(images), [[3, 1], [5, 0]])


def test_statistics_of_an_absent_modality_are_zero():
    np.testing.assert_array_equal(intensity_statistics(np.zeros((1, 3))), [[0, 0]])


def test_scores_are_standardized_and_background_stays_zero():
    images = np.array([[0, 2, 4], [0, 30, 50]], np.int16)
    scores = zscore(images, intensity_statistics(images))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[0, -1, 1], [0, -1, 1]])
    assert not np.signbit(scores[:, 0]).any()


def test_scores_broadcast_over_all_axes():
    images = np.random.default_rng(0).integers(0, 900, (4, 5, 6, 7)).astype(np.int16)
    scores = zscore(images, intensity_statistics(images))
    for image, score in zip(images, scores, strict=True):
        brain = image != 0
        assert abs(score[brain].mean()) < 1e-5
        assert abs(score[brain].std() - 1) < 1e-5


def test_constant_modality_becomes_zero():
    images = np.array([[0, 7, 7]], np.int16)
    np.testing.assert_array_equal(zscore(images, intensity_statistics(images)), [[0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32])
def test_integers_that_fit_are_kept(dtype):
    images = np.array([[0, 1, 200]], dtype)
    values, scales = stored(images)
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, images)
    np.testing.assert_array_equal(scales, [1])


def test_large_integers_are_scaled():
    images = np.array([[0, 30000, 65535]], np.uint16)
    values, scales = stored(images)
    np.testing.assert_allclose(values * scales[:, None], images, atol=1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("outlier", [5, 1e3])
def test_floats_keep_their_scores_in_any_unit(unit, outlier):
    images = np.random.default_rng(0).normal(5, 1, (2, 10**5)) * unit
    images[:, :100] = 0
    images[:, 100] = outlier * unit
    statistics = intensity_statistics(images)
    values, scales = to_int16(images, statistics)
    np.testing.assert_array_equal(values == 0, images == 0)
    scores = zscore(values, statistics / scales[:, None])
    np.testing.assert_allclose(scores, zscore(images, statistics), atol=5.1e-3)


def test_values_beyond_327_deviations_are_clipped():
    images = np.random.default_rng(0).normal(5, 1, (1, 10**6))
    images[0, 0] = 1e6
    values, scales = stored(images)
    assert values[0, 0] == np.iinfo(np.int16).max
    assert scales[0] == pytest.approx(images.std() / 100)


def test_small_values_do_not_become_background():
    values, _ = stored(np.array([[0, 1e-9, -1e-9, 1.0]]))
    np.testing.assert_array_equal(np.sign(values), [[0, 1, -1, 1]])


def test_constant_and_empty_floats_are_kept_apart():
    values, _ = stored(np.array([[0, 0.5, 0.5], [0, 0, 0]]))
    np.testing.assert_array_equal(values != 0, [[False, True, True], [False, False, False]])


def stored(images):
    return to_int16(images, intensity_statistics(images))
