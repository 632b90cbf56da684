"""Volumes and small networks to predict with."""

from functools import cache

import numpy as np
import torch
from torch import nn

from cggm_seg.data.cases import MODALITIES
from cggm_seg.inference.slices import InferenceSettings
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.losses import SoftDiceCELoss
from tests.cggm_seg.nifti import CONTRASTS, anatomy

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
FLOAT32 = InferenceSettings(precision="float32")
WHOLE = InferenceSettings(precision="float32", crop_to_brain=False)


def brain_volume(shape=(64, 48, 20), seed=0):
    rng = np.random.default_rng(seed)
    brain, classes = anatomy(shape, rng)
    means = np.array([CONTRASTS[name] for name in MODALITIES])
    images = means[:, classes] + 25 * rng.standard_normal((4, *shape))
    return np.where(brain, np.maximum(images.round(), 1), 0).astype(np.int16), classes


def embed(images, shape, corner):
    volume = np.zeros((len(images), *shape), images.dtype)
    volume[:, *(slice(c, c + n) for c, n in zip(corner, images.shape[1:], strict=True))] = images
    return volume


def zscores(images):
    scores = np.zeros(images.shape, np.float32)
    for score, image in zip(scores, images, strict=True):
        values = image[image != 0].astype(np.float64)
        if values.size:
            score[image != 0] = (values - values.mean()) / values.std()
    return torch.from_numpy(scores)


def small_network(modalities=MODALITIES):
    torch.manual_seed(0)
    return MultiEncoderDeepLabV3Plus(
        modalities,
        encoder_name="tu-mobilenetv3_small_050",
        decoder_channels=16,
        low_level_channels=8,
        aspp_dropout=0.0,
    )


@cache
def trained_network():
    """Trained until it recognizes the classes, so that its labels are no ties of noise."""
    network, loss = small_network(), SoftDiceCELoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    images, classes = brain_volume()
    scores, target = zscores(images).movedim(-1, 0), torch.from_numpy(classes).long().movedim(-1, 0)
    for _ in range(30):
        chosen = torch.randint(3, 17, (4,))  # slices with lesion
        optimizer.zero_grad()
        loss(network(scores[chosen]), target[chosen]).backward()
        optimizer.step()
    return network.eval()


class PixelNetwork(nn.Module):
    """Sees no neighbors: however a volume is cut, the same voxels get the same classes."""

    modalities = MODALITIES

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, images):
        return self.layer(images)
