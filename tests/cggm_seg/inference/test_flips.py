import numpy as np
import pytest
import torch
from torch import nn

from cggm_seg.data.cases import MODALITIES
from cggm_seg.inference.slices import InferenceSettings
from cggm_seg.inference.volume import predict_probabilities, predict_volume
from tests.cggm_seg.predicting import PixelNetwork, brain_volume, zscores

WHOLE = {"precision": "float32", "crop_to_brain": False}


class Lopsided(nn.Module):
    """Sees its neighbors, and right and left, front and back with other weights."""

    modalities = MODALITIES

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(4, 4, 5, padding=2)

    def forward(self, images):
        return 3 * self.layer(images)


def test_probabilities_are_the_mean_over_four_mirror_images():
    network = Lopsided()
    images, _ = brain_volume((33, 17, 3))
    padded = np.pad(zscores(images).movedim(-1, 0).numpy(), [(0, 0), (0, 0), (0, 15), (0, 15)])
    views = [
        (lambda x: x),
        (lambda x: x[:, :, ::-1]),
        (lambda x: x[..., ::-1]),
        (lambda x: x[:, :, ::-1, ::-1]),
    ]
    with torch.no_grad():
        shares = [
            view(network(torch.from_numpy(view(padded).copy())).softmax(1).numpy())
            for view in views
        ]
    expected = (sum(shares) / 4)[:, :, :33, :17].transpose(1, 2, 3, 0)
    expected[..., ~images.any(axis=(0, 1, 2))] = np.array([1, 0, 0, 0])[:, None, None, None]

    flips = InferenceSettings(**WHOLE, flips=True)
    probabilities = predict_probabilities(network, images, flips)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    plain = predict_probabilities(network, images, InferenceSettings(**WHOLE))
    assert np.abs(probabilities - plain).max() > 0.05
    np.testing.assert_array_equal(
        predict_volume(network, images, flips), probabilities.argmax(0).astype(np.uint8)
    )


@pytest.mark.parametrize("cut", [{}, {"crop_to_brain": False}, {"mode": "window", "window": 32}])
def test_a_network_without_sides_gives_the_same(cut):
    torch.manual_seed(0)
    network = PixelNetwork()
    images, _ = brain_volume((50, 41, 9))
    plain, flips = (
        predict_probabilities(
            network, images, InferenceSettings(precision="float32", flips=flips, **cut)
        )
        for flips in (False, True)
    )
    brain = images.any(axis=0)
    np.testing.assert_allclose(flips[:, brain], plain[:, brain], atol=1e-5)
