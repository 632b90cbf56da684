import pytest
import torch
from torch import nn

from cggm_seg.networks.ensemble import Ensemble


class Constant(nn.Module):
    """Predicts the same logits everywhere."""

    def __init__(self, *logits, modalities=("flair", "t1")):
        super().__init__()
        self.modalities = modalities
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        batch, _, height, width = images.shape
        return self.logits[None, :, None, None].expand(batch, -1, height, width)


def test_probabilities_are_averaged_not_logits():
    # Odds 1:3 and 9:1; their probabilities average to .575 for the first class, their logits to
    # odds of sqrt(3), .634.
    first, second = Constant(0.0, torch.tensor(3.0).log()), Constant(torch.tensor(9.0).log(), 0.0)
    ensemble = Ensemble([first, second])
    probabilities = ensemble(torch.zeros(2, 2, 3, 5)).softmax(1)
    assert probabilities.shape == (2, 2, 3, 5)
    torch.testing.assert_close(probabilities[:, 0], torch.full((2, 3, 5), (0.25 + 0.9) / 2))


def test_one_sure_member_does_not_outvote_two():
    ensemble = Ensemble([Constant(50.0, 0.0), Constant(0.0, 1.0), Constant(0.0, 1.0)])
    # logits would say 50 : 2 for the first class; probabilities say .513 : .487
    probabilities = ensemble(torch.zeros(1, 2, 1, 1)).softmax(1).flatten()
    expected = (1 + 2 / (1 + torch.e)) / 3
    assert probabilities[0].item() == pytest.approx(expected, abs=1e-6)


def test_an_ensemble_of_equals_is_each_of_them():
    member = Constant(0.3, -1.0, 2.0)
    images = torch.zeros(1, 2, 4, 4)
    found = Ensemble([member, member, member])(images).log_softmax(1)
    torch.testing.assert_close(found, member(images).log_softmax(1))


def test_members_that_see_other_modalities_are_refused():
    with pytest.raises(ValueError, match="same modalities"):
        Ensemble([Constant(1.0), Constant(1.0, modalities=("t1", "flair"))])
    with pytest.raises(ValueError, match="same modalities"):
        Ensemble([])
