import numpy as np
import pytest

from cggm_seg.data.preprocessing import (
    background_value,
    brain_box,
    intensity_limits,
    intensity_statistics,
    prepare_image,
    rounding_errors,
    to_int16,
    without_background,
    zscore,
)
from tests.cggm_seg.nifti import anatomy


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
    values, scales, _ = stored(images)
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, images)
    np.testing.assert_array_equal(scales, [1])


def test_large_integers_are_scaled():
    images = np.array([[0, 30000, 65535]], np.uint16)
    values, scales, _ = stored(images)
    np.testing.assert_allclose(values * scales[:, None], images, atol=1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("outlier", [5, 1e3])
def test_floats_keep_their_scores_in_any_unit(unit, outlier):
    images = np.random.default_rng(0).normal(5, 1, (2, 10**5)) * unit
    images[:, :100] = 0
    images[:, 100] = outlier * unit
    statistics = intensity_statistics(images)
    values, scales, _ = to_int16(images, statistics)
    np.testing.assert_array_equal(values == 0, images == 0)
    scores = zscore(values, statistics / scales[:, None])
    np.testing.assert_allclose(scores, zscore(images, statistics), atol=5.1e-3)


def test_values_beyond_327_deviations_are_clipped():
    images = np.random.default_rng(0).normal(5, 1, (1, 10**6))
    images[0, 0] = 1e6
    values, scales, _ = stored(images)
    assert values[0, 0] == np.iinfo(np.int16).max
    assert scales[0] == pytest.approx(images.std() / 100)


def test_small_values_do_not_become_background():
    values, _, _ = stored(np.array([[0, 1e-9, -1e-9, 1.0]]))
    np.testing.assert_array_equal(np.sign(values), [[0, 1, -1, 1]])


def test_constant_and_empty_floats_are_kept_apart():
    values, _, _ = stored(np.array([[0, 0.5, 0.5], [0, 0, 0]]))
    np.testing.assert_array_equal(values != 0, [[False, True, True], [False, False, False]])


def stored(images):
    return to_int16(images, intensity_statistics(images))


SHAPE = (24, 20, 16)


def head(seed=0, shape=SHAPE):
    """Integer intensities of 200 to 900 in a brain that touches no border, else 0."""
    rng = np.random.default_rng(seed)
    brain, _ = anatomy(shape, rng)
    return np.where(brain, rng.integers(200, 900, shape), 0).astype(np.int16)


def scores_of(image):
    prepared = prepare_image(image)[None]
    return zscore(prepared, intensity_statistics(prepared))[0]


COPIES = {
    "z-scored": lambda x: ((x - x.mean()) / x.std()).astype(np.float32),
    "scaled to -1 to 1": lambda x: (x / (x.max() / 2) - 1).astype(np.float32),
    "scaled to 0 to 255": lambda x: (x * (255 / x.max())).astype(np.float32),
    "shifted by -5": lambda x: (x / 100 - 5).astype(np.float64),
    "shifted to the least int16": lambda x: x - np.int16(32767),
    "shifted in uint16": lambda x: x.astype(np.uint16) + np.uint16(60000),
    "shifted in int32": lambda x: x.astype(np.int32) - 10**9,
    "inverted": lambda x: 1000 - x,
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_an_image_have_its_scores(name):
    image = head()
    copy = COPIES[name](image)
    sign = -1 if name == "inverted" else 1
    np.testing.assert_allclose(sign * scores_of(copy), scores_of(image), atol=2e-6)
    prepared = prepare_image(copy)
    np.testing.assert_array_equal(prepared == 0, image == 0)


def test_clean_images_are_not_touched():
    for image in (head(), head().astype(np.float32), head().astype(np.uint16)):
        assert prepare_image(image) is image
    assert background_value(np.zeros(SHAPE)) == 0


def test_background_is_the_value_of_the_border():
    image = np.full((6, 6, 6), -2.5)
    image[1:5, 1:5, 1:5] = np.arange(64).reshape(4, 4, 4)
    assert background_value(image) == -2.5
    # A brain may be cut off at a face, by slices that do not reach farther.
    image[1:5, 1:5, 0] = np.arange(100, 116).reshape(4, 4)
    assert background_value(image) == -2.5


def test_noise_around_the_brain_is_no_background():
    rng, image = np.random.default_rng(0), head()
    noises = [
        rng.normal(0, 5, SHAPE),
        np.maximum(rng.normal(0, 5, SHAPE), 0),
        rng.integers(0, 2, SHAPE),
        np.where(rng.random(SHAPE) < 0.1, 7, 0),
        np.abs(rng.normal(0, 3, SHAPE)).round(),
    ]
    for noise in noises:
        assert background_value(np.where(image == 0, noise, image)) is None
    padded = np.pad(image - 300, 3, constant_values=0)  # two values surround the brain
    assert background_value(padded) in (None, 0)


@pytest.mark.parametrize("spike", [1e7, -1e7, 3e5])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("copy", ["as it is", "z-scored"])
def test_few_extreme_voxels_change_no_other_score(spike, count, copy):
    image = head(shape=(48, 44, 32)).astype(np.float64)
    expected = scores_of(image)
    places = np.flatnonzero(image.ravel())[100 : 100 + count]
    spiked = image.copy()
    spiked.flat[places] = spike
    if copy == "z-scored":
        spiked = (spiked - spiked.mean()) / spiked.std()
    others = np.ones(image.size, bool)
    others[places] = False
    found = scores_of(spiked).ravel()
    np.testing.assert_allclose(found[others], expected.ravel()[others], atol=0.02)
    assert np.abs(found).max() < 4


def test_bright_vessels_are_not_extreme():
    rng = np.random.default_rng(1)
    image = head(shape=(48, 44, 32)).astype(np.float32)
    brain = np.flatnonzero(image)
    vessels = rng.choice(brain, brain.size // 500, replace=False)
    image.flat[vessels] = rng.uniform(2000, 3500, vessels.size)  # up to 15 deviations
    assert intensity_limits(image) is None
    assert prepare_image(image) is image


@pytest.mark.parametrize("offset", [32768, 60000])
def test_offset_of_the_brain_leaves_its_scores_in_16_bits(offset):
    image = head()[None].astype(np.int64)
    far = np.where(image, image // 4 + offset, 0).astype(np.uint16)
    near = np.where(image, image // 4, 0).astype(np.uint16)
    statistics = intensity_statistics(far)
    values, scales, offsets = to_int16(far, statistics)
    np.testing.assert_array_equal(values == 0, image == 0)
    assert values.min() == 0
    errors = rounding_errors(far, statistics, values, scales, offsets)
    assert 0 < errors[0] < 0.01
    stored = np.where(values, values * scales[0] + offsets[0], 0)
    np.testing.assert_allclose(stored, far, atol=0.01 * statistics[0, 1])
    moved = (statistics - [offsets[0], 0]) / scales[0]
    expected = zscore(near, intensity_statistics(near))
    np.testing.assert_allclose(zscore(values, moved), expected, atol=0.011)


def test_small_contrast_far_from_zero_keeps_its_scores():
    image = head()[None].astype(np.float64)
    far = np.where(image, image / 100 + 1e6, 0)
    expected = zscore(image, intensity_statistics(image))
    np.testing.assert_allclose(zscore(far, intensity_statistics(far)), expected, atol=1e-5)


def test_rounding_error_is_measured_by_hand():
    images, statistics = np.array([[0.0, 1.0, 3.0]]), np.array([[2.0, 0.5]])
    values, scales, offsets = np.array([[0, 1, 4]], np.int16), np.array([0.5]), np.array([0.6])
    # 1 became 1.1 and 3 became 2.6: by 0.4 at most, which is 0.8 deviations.
    errors = rounding_errors(images, statistics, values, scales, offsets)
    np.testing.assert_allclose(errors, [0.8])


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (np.int16, np.int32),
        (np.uint8, np.int32),
        (np.int32, np.float64),
        (np.int64, np.float64),
        (np.float32, np.float32),
    ],
)
def test_an_image_less_its_background_is_of_a_type_that_holds_it(kind, result):
    image = np.array([5, 100], kind)
    less = without_background(image, 5.0)
    assert (less.dtype, less.tolist()) == (result, [0, 95])
