import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from cggm.runs.loop.seeds import seed_everything
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.pictures import COLORS
from cggm_seg.training.validation import ValidationSlice, _outline
from tests.cggm_seg.nifti import case_file, write_case, write_volume
from tests.quantifiers import every, none

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    write_case(folder / "data", "case0", shape=(40, 44, 24), seed=0)
    write_case(folder / "data", "healthy", shape=(40, 44, 24), seed=1)
    write_volume(case_file(folder / "data", "healthy", "seg"), np.zeros((40, 44, 24), np.uint8))
    cases, _ = find_cases(folder / "data", labelled=True)
    return build_cache(cases, folder / "cache", workers=1, progress=False)[0]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MultiEncoderDeepLabV3Plus(
        ("t1", "t1ce", "flair", "t2"),
        encoder_name="tu-lcnet_050",
        decoder_channels=16,
        low_level_channels=8,
    )


def drawn(pixels, name):
    """Where an outline of this color was drawn."""
    return (pixels == np.multiply(255, to_rgb(COLORS[name])).astype(np.uint8)).all(-1)


def test_slice_is_the_one_with_the_most_tumor(cache, network):
    areas = [np.count_nonzero(cache.read("case0", z)[1]) for z in range(cache.depth("case0"))]
    picture = ValidationSlice(network, cache, "case0")()
    largest = int(np.argmax(areas))
    assert picture.name == f"validation/case0-slice-{largest}/image-truth-prediction"
    healthy = ValidationSlice(network, cache, "healthy")()
    assert f"healthy-slice-{cache.depth('healthy') // 2}/" in healthy.name


def test_truth_and_prediction_are_outlined_in_their_columns(cache, network):
    network.output_layer.weight.data.zero_()
    network.output_layer.bias.data = torch.tensor([0.0, 0.0, 9.0, 0.0])  # edema everywhere
    pixels = ValidationSlice(network, cache, "case0")().pixels
    assert pixels.dtype == np.uint8
    rows, columns = np.split(pixels, 2), 3
    for row in rows:  # FLAIR and T1ce
        plain, truth, prediction = np.split(row, columns, axis=1)
        assert none(drawn(plain, name).any() for name in COLORS)
        assert every(drawn(truth, name).any() for name in COLORS)
        height, width = (length - 4 for length in prediction.shape[:2])
        border = np.zeros(prediction.shape[:2], bool)
        border[:height, :width] = True
        border[1 : height - 1, 1 : width - 1] = False
        np.testing.assert_array_equal(drawn(prediction, "ED"), border)
    assert not np.array_equal(rows[0], rows[1])


def test_orientation_is_that_of_radiology(cache, network):
    """Arrays are LPS: the patient's left is on the right, posterior below."""
    _, truth = cache.read("case0", ValidationSlice(network, cache, "case0")._depth)
    left, posterior = (np.argwhere(truth > 0) * 2).mean(0)
    column = np.split(np.split(ValidationSlice(network, cache, "case0")().pixels, 2)[0], 3, 1)[1]
    y, x = np.argwhere(drawn(column, "ED")).mean(0)
    assert (x, y) == pytest.approx((left + 0.5, posterior + 0.5), abs=1)


def test_nothing_changes_but_the_prediction(cache, network):
    network.train()
    before = deepcopy(network.state_dict())
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_everything(3)
    draw = ValidationSlice(network, cache, "case0")
    first, second = draw(), draw()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert np.array_equal(first.pixels, second.pixels)
    assert network.training
    assert every(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.output_layer.bias.data += torch.tensor([0.0, 50.0, 0.0, 0.0])
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(*(np.split(p, 3, 1) for p in (first.pixels, draw().pixels)), strict=True)
    ]
    assert changed == [False, False, True]


def test_first_modality_is_shown_without_flair_and_t1ce(cache):
    network = MultiEncoderDeepLabV3Plus(
        ("t1",), encoder_name="tu-lcnet_050", decoder_channels=16, low_level_channels=8
    )
    picture = ValidationSlice(network, cache.only(["t1"]), "case0")()
    height, width, _ = picture.pixels.shape
    assert width > 2 * height  # one row


def test_outline_by_hand():
    mask = np.array([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0]], bool)
    expected = mask.copy()
    expected[1, 2] = expected[2, 2] = False
    np.testing.assert_array_equal(_outline(mask), expected)
