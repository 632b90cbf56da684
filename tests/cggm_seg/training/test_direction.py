"""The direction loss under the BraTS loss, with and without upsampling behind the last layer."""

import pytest

from cggm_seg.training.losses import SoftDiceCELoss
from tests.cggm.direction import Problem, check_direction_loss


@pytest.mark.parametrize("upsample", [False, True])
def test_direction_loss_is_differentiable_under_dice_and_cross_entropy(upsample):
    check_direction_loss(Problem(SoftDiceCELoss().double(), 2, upsample))
