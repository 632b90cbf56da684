"""Backgrounds and extremes of files, in verification, training and inference alike."""

import numpy as np
import pytest

from cggm.errors import DataError
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.findings import Code
from cggm_seg.data.preprocessing import intensity_statistics, zscore
from cggm_seg.data.volumes import read_case
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.cggm_seg.verifying import found, stored, verify

SHAPE = (48, 40, 24)


@pytest.fixture
def data(tmp_path):
    for seed, case_id in enumerate("abc"):
        write_case(tmp_path / "data", case_id, shape=SHAPE, seed=seed)
    return tmp_path / "data"


def change(file, function):
    write_volume(file, function(stored(file)))


def zscored(array):
    return ((array - array.mean()) / array.std()).astype(np.float32)


def noisy(array):
    noise = np.random.default_rng(3).integers(1, 9, array.shape)
    return np.where(array, array, noise).astype(array.dtype)


def faint(array):
    """Noise of a thousandth of the brain's intensities around it, zeros at the border."""
    noise = np.random.default_rng(3).normal(0, 3e-4 * np.median(array[array > 0]), array.shape)
    inside = np.zeros(array.shape, bool)
    inside[2:-2, 2:-2, 2:-2] = True
    return np.where(array, array, noise * inside).astype(np.float32)


def spiked(array):
    array = array.astype(np.float32)
    array[24, 20, 12] = 1e7
    return array


def test_copy_scaled_as_a_whole_is_the_same_case_everywhere(data, tmp_path):
    [plain, *_], _ = find_cases(data, labelled=True)
    expected, _ = build_cache([plain], tmp_path / "plain", workers=1, progress=False)
    before = verify(data)
    for part in ("flair", "t1ce", "t1", "t2"):
        change(case_file(data, "a", part), zscored)
    after = verify(data, fresh=True)
    assert [f.code for f in after.findings if f.code is not Code.CHANGED] == []
    assert before.findings == []
    images = read_case(plain).images
    assert (images[:, 0] == 0).all()
    cache, errors = build_cache([plain], tmp_path / "zscored", workers=1, progress=False)
    assert errors == []
    for z in range(expected.depth("a")):
        image, label = cache.read("a", z)
        np.testing.assert_allclose(image, expected.read("a", z)[0], atol=0.011)
        np.testing.assert_array_equal(label, expected.read("a", z)[1])


def test_noise_around_the_head_is_named_and_refused(data, tmp_path):
    file = case_file(data, "b", "t1")
    change(file, noisy)
    assert found(data) == [(Code.BACKGROUND, "b", file.name)]
    cases, _ = find_cases(data, labelled=True)
    with pytest.raises(DataError, match=r"background of one value.*Strip the skull") as caught:
        read_case(cases[1])
    assert (caught.value.code, caught.value.file) == (Code.BACKGROUND, file)
    _, [error] = build_cache(cases, tmp_path / "cache", workers=1, progress=False)
    assert error.file == file


def test_faint_noise_within_a_border_of_zeros_is_no_brain(data):
    file = case_file(data, "b", "t1")
    change(file, faint)
    assert found(data) == [(Code.BACKGROUND, "b", file.name)]
    cases, _ = find_cases(data, labelled=True)
    with pytest.raises(DataError, match=r"% of the other voxels are next to it: faint noise"):
        read_case(cases[1])


def test_more_than_a_brain_is_named_and_refused(data):
    wide = np.diag([-6.0, -6.0, 6.0, 1.0])  # 2917 ml in place of 14
    for part in ("flair", "t1ce", "t1", "t2", "seg"):
        other = case_file(data, "b", part)
        write_volume(other, stored(other), wide)
    codes = {(code, case) for code, case, _ in found(data)}
    assert codes == {(Code.NOT_STRIPPED, "b"), (Code.ODD_GEOMETRY, "b")}
    cases, _ = find_cases(data, labelled=True)
    with pytest.raises(DataError, match="brain of at most 2500 ml, but 2917"):
        read_case(cases[1])


def test_one_extreme_voxel_is_a_warning_and_is_clipped(data, tmp_path, caplog):
    file = case_file(data, "b", "t2")
    cases, _ = find_cases(data, labelled=True)
    expected = read_case(cases[1]).images[3].astype(float)
    change(file, spiked)
    [finding] = verify(data).findings
    assert (finding.code, finding.case, finding.file) == (Code.EXTREME, "b", file)
    assert not finding.is_error
    assert "found 1 up to 1e+07" in finding.what
    image = read_case(cases[1]).images[3]
    assert "1e+07" in caplog.text
    assert image.max() <= expected.max()
    differing = np.flatnonzero(image != expected)
    assert differing.size == 1


@pytest.mark.parametrize("factor", [1e29, 1e37, -1e37, 1e-36, 1e-300])
def test_intensities_that_single_precision_does_not_hold_are_refused(data, tmp_path, factor):
    change(case_file(data, "a", "t1"), lambda array: array * factor)
    cases, _ = find_cases(data, labelled=True)
    with pytest.raises(DataError, match=r"a_t1.*1e\+30"):
        read_case(cases[0])
    _, [error] = build_cache(cases, tmp_path / "cache", workers=1, progress=False)
    assert error.case == "a"
    assert Code.MAGNITUDE in [finding.code for finding in verify(data).findings]


@pytest.mark.parametrize("factor", [1e20, 1e-20])
def test_intensities_of_an_unusual_unit_are_read(data, factor):
    change(case_file(data, "a", "t1"), lambda array: array * factor)
    [case, *_], _ = find_cases(data, labelled=True)
    images = read_case(case).images.astype(float)
    scores = zscore(images, intensity_statistics(images))
    brain = images[2] != 0
    assert scores[2][brain].std() == pytest.approx(1, abs=1e-3)
