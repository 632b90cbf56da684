from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm.errors import UserError
from cggm_seg.data.cases import MODALITIES
from cggm_seg.inference.slices import InferenceSettings, computes_bf16
from cggm_seg.inference.volume import predict_probabilities, predict_volume
from tests.cggm_seg.predicting import (
    FLOAT32,
    WHOLE,
    PixelNetwork,
    brain_volume,
    embed,
    small_network,
    trained_network,
    zscores,
)
from tests.quantifiers import every

WINDOWS = InferenceSettings("window", window=64, precision="float32")


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture
def always_one():
    """Predicts class 1 wherever it looks."""
    network = small_network().eval()
    nn.init.zeros_(network.output_layer.weight)
    with torch.no_grad():
        network.output_layer.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    return network


def dice(one, other):
    one, other = one > 0, other > 0
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_trained_network_finds_the_lesion(network):
    images, classes = brain_volume(seed=1)
    labels = predict_volume(network, images)
    assert labels.dtype == np.uint8
    assert labels.shape == classes.shape
    assert dice(labels, classes) > 0.85


@pytest.mark.parametrize("shape", [(64, 48, 20), (50, 70, 9), (33, 17, 3)])
def test_labels_are_those_of_a_plain_loop(network, shape):
    images, _ = brain_volume(shape)
    padded = F.pad(zscores(images).movedim(-1, 0), (0, -shape[1] % 16, 0, -shape[0] % 16))
    with torch.no_grad():
        expected = network(padded).argmax(1)[:, : shape[0], : shape[1]].movedim(0, -1).numpy()
    expected[..., ~images.any(axis=(0, 1, 2))] = 0
    labels = predict_volume(network, images, WHOLE)
    assert (labels == expected).mean() > 0.9999


def test_crop_to_the_brain_hardly_changes_the_lesion(network):
    volume = embed(brain_volume()[0], (80, 64, 24), (16, 16, 2))
    cropped, whole = (predict_volume(network, volume, s) for s in (FLOAT32, WHOLE))
    assert (cropped == whole).mean() > 0.997
    assert dice(cropped, whole) > 0.93


def test_windows_find_the_lesion_of_whole_slices(network):
    images, _ = brain_volume((96, 80, 20), seed=2)
    windows = predict_volume(network, images, WINDOWS)
    assert dice(windows, predict_volume(network, images, FLOAT32)) > 0.95


def test_every_cut_puts_labels_where_they_belong():
    torch.manual_seed(0)
    network = PixelNetwork()
    volume = embed(brain_volume((50, 41, 11))[0], (115, 90, 20), (33, 21, 4))
    with torch.no_grad():
        expected = network(zscores(volume).movedim(-1, 0)).argmax(1).movedim(0, -1).numpy()
    assert len(np.unique(expected)) > 1
    brain = volume.any(axis=0)
    for settings in (FLOAT32, WHOLE, WINDOWS):
        labels = predict_volume(network, volume, settings)
        assert (labels[brain] == expected[brain]).mean() > 0.9999
        assert not labels[..., :4].any()
        assert not labels[..., 15:].any()


def test_shifted_volume_gives_shifted_labels(network):
    images, _ = brain_volume()
    near, far = (2, 3, 0), (34, 19, 5)  # in the plane by multiples of the output stride
    labels = [
        predict_volume(network, embed(images, (112, 96, 30), c), FLOAT32) for c in (near, far)
    ]
    assert labels[0].any()
    np.testing.assert_array_equal(np.roll(labels[0], (32, 16, 5), axis=(0, 1, 2)), labels[1])


def test_only_slices_with_brain_are_labelled_within_the_box(always_one):
    images = np.zeros((4, 70, 60, 9), np.int16)
    images[0, 20:41, 17:50, 2:4] = images[1, 30:35, 20:30, 6] = 100
    expected = np.zeros(images.shape[1:], np.uint8)
    # The box is rows 20-40, columns 17-49; on the grid of 16: rows 16-47, columns 16-59 (clipped).
    expected[16:48, 16:60, [2, 3, 6]] = 1
    np.testing.assert_array_equal(predict_volume(always_one, images), expected)
    expected[:, :, [2, 3, 6]] = 1
    np.testing.assert_array_equal(predict_volume(always_one, images, WHOLE), expected)


@pytest.mark.parametrize("offset", [-3.5, 1000.0])
def test_another_background_gives_the_same_labels(network, offset):
    images, _ = brain_volume()
    volume = embed(images, (72, 56, 24), (3, 4, 2))
    shifted = volume.astype(np.float64) + offset
    expected = predict_volume(network, volume, FLOAT32)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(predict_volume(network, shifted, FLOAT32), expected)


def test_absent_modality_equals_zeros(network):
    images, _ = brain_volume()
    zeros = images.copy()
    zeros[[1, 3]] = 0
    before = images.copy()
    labels = predict_volume(network, images, absent=("t2", "t1ce"))
    np.testing.assert_array_equal(labels, predict_volume(network, zeros))
    assert (labels != predict_volume(network, images)).any()
    np.testing.assert_array_equal(images, before)


def test_statistics_of_one_modality_do_not_depend_on_another(network):
    # t1 reaches beyond the others: its extra voxels must not enter their statistics.
    images, _ = brain_volume()
    images[2, :2] = 500
    np.testing.assert_array_equal(
        predict_volume(network, images, absent=("t1",)),
        predict_volume(network, np.where(np.arange(4)[:, None, None, None] == 2, 0, images)),
    )


def test_probabilities_sum_to_one_and_agree_with_labels(network):
    images = embed(brain_volume()[0], (80, 70, 24), (9, 13, 2))
    probabilities = predict_probabilities(network, images)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (4, *images.shape[1:])
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(0), predict_volume(network, images))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batch_size_changes_nothing(network, batch_size):
    images, _ = brain_volume()
    labels = predict_volume(network, images, InferenceSettings(batch_size=batch_size))
    assert (labels == predict_volume(network, images)).mean() > 0.9999


def test_tensors_and_other_types_are_accepted(network):
    images, _ = brain_volume()
    expected = predict_volume(network, images)
    for other in (torch.from_numpy(images), images.astype(np.float64), np.asfortranarray(images)):
        assert (predict_volume(network, other) == expected).mean() > 0.9999


def test_modes_of_modules_are_restored():
    network = small_network()
    network.decoder.eval()
    before = {name: module.training for name, module in network.named_modules()}
    statistics = [buffer.clone() for buffer in network.buffers()]
    predict_volume(network, brain_volume((32, 32, 4))[0])
    assert {name: module.training for name, module in network.named_modules()} == before
    assert network.training
    assert every(map(torch.equal, network.buffers(), statistics))


def test_bfloat16_is_automatic_only_where_it_is_computed():
    device = torch.device("cpu")
    assert not InferenceSettings(precision="float32").autocast(device)._enabled
    assert InferenceSettings(precision="bf16").autocast(device)._enabled
    assert InferenceSettings().autocast(device)._enabled == computes_bf16(device)
    if not torch.cpu.get_capabilities().get("avx2"):
        pytest.skip("the flags below are of x86")
    flags = Path("/proc/cpuinfo").read_text()
    assert computes_bf16(device) == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_bfloat16_labels_are_close(network):
    images, _ = brain_volume((48, 32, 4))
    labels = predict_volume(network, images, InferenceSettings(precision="bf16"))
    assert (labels == predict_volume(network, images, FLOAT32)).mean() > 0.98


def test_volume_without_brain_is_refused(network):
    with pytest.raises(UserError, match="all voxels are zero"):
        predict_volume(network, np.zeros((4, 32, 32, 4)))
    with pytest.raises(UserError, match="absent"):
        predict_volume(network, brain_volume()[0], absent=MODALITIES)


def test_wrong_arguments_are_refused(network):
    images, _ = brain_volume((32, 32, 4))
    with pytest.raises(UserError, match="t1gd"):
        predict_volume(network, images, absent=("t1gd",))
    with pytest.raises(ValueError, match=r"\(4, H, W, Z\)"):
        predict_volume(network, images[:3])
    for settings in ({"window": 100}, {"mode": "slices"}, {"batch_size": 0}):
        with pytest.raises(UserError):
            InferenceSettings(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("flips", [False, True])
def test_predictions_that_are_no_numbers_are_refused(always_one, value, flips):
    images, _ = brain_volume()
    with torch.no_grad():
        always_one.output_layer.bias[1] = value
    with pytest.raises(UserError, match="weights of the model"):
        predict_volume(always_one, images, InferenceSettings(precision="float32", flips=flips))
