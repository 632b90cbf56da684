import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from cggm_seg.training.losses import SoftDiceCELoss


def test_loss_of_two_pixels_by_hand():
    # Softmax of log-probabilities is the probabilities: pixel A (0.5, 0.25, 0.125, 0.125) of
    # class 1, pixel B (0.25, 0.25, 0.25, 0.25) of class 0.
    probability = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    prediction = probability.log().T.reshape(1, 4, 1, 2)
    target = torch.tensor([[[1, 0]]])
    # Foreground probabilities sum to (1 - 0.5) + (1 - 0.25) = 1.25, targets to 1, overlap is 0.25:
    # D = 2 * 0.25 / (1.25 + 1 + 0.01) = 0.5 / 2.26.
    # CE = (0.3 * ln 4 + 0.2 * ln 4) / (0.3 + 0.2) = ln 4 = 1.3862944.
    expected = 1 - 0.5 / 2.26 + 1.3862944
    assert SoftDiceCELoss()(prediction, target).item() == pytest.approx(expected, abs=1e-6)
    half = SoftDiceCELoss(ce_weight=0.5)(prediction, target).item()
    assert half == pytest.approx(1 - 0.5 / 2.26 + 0.6931472, abs=1e-6)


def test_loss_weights_classes_by_hand():
    # Pixel A of class 1 has probability 1/2, pixel B of class 2 has 1/8; both of foreground only.
    probability = torch.tensor([[1e-9, 0.5, 0.25, 0.25], [1e-9, 0.5, 0.125, 0.375]])
    prediction = probability.log().T.reshape(1, 4, 2, 1)
    target = torch.tensor([[[1], [2]]])
    # CE = (0.3 ln 2 + 0.25 ln 8) / 0.55 = (0.3 + 0.75) ln 2 / 0.55 = 1.3232810
    # D = 2 (0.5 + 0.125) / (2 + 2 + 0.01) = 1.25 / 4.01
    expected = 1 - 1.25 / 4.01 + 1.3232810
    assert SoftDiceCELoss()(prediction, target).item() == pytest.approx(expected, abs=1e-6)


def test_dice_is_taken_over_the_whole_batch():
    # A sample without foreground next to one with: the mean of per-sample Dice would differ.
    prediction = torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0]]).reshape(2, 4, 1, 1)
    target = torch.tensor([0, 1]).reshape(2, 1, 1)
    p = prediction.softmax(1)
    dice = 2 * p[1, 1] / (p[:, 1:].sum() + 1 + 0.01)
    loss = SoftDiceCELoss(ce_weight=0.0)(prediction, target)
    torch.testing.assert_close(loss, 1 - dice.squeeze())


@pytest.mark.parametrize("size", [(5,), (6, 5), (4, 3, 5)])
def test_cross_entropy_is_that_of_torch(size):
    prediction, target = torch.randn(2, 4, *size), torch.randint(0, 4, (2, *size))
    difference = SoftDiceCELoss()(prediction, target) - SoftDiceCELoss(ce_weight=0.0)(
        prediction, target
    )
    weight = torch.tensor([0.2, 0.3, 0.25, 0.25])
    torch.testing.assert_close(difference, F.cross_entropy(prediction, target, weight))


def test_target_may_have_a_channel_axis():
    prediction, target = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3))
    loss = SoftDiceCELoss()
    assert torch.equal(loss(prediction, target), loss(prediction, target[:, None]))


def test_perfect_prediction_costs_only_the_smoothing():
    target = torch.randint(0, 4, (2, 8, 8))
    prediction = 100.0 * F.one_hot(target, 4).movedim(-1, 1)
    foreground = (target > 0).sum().item()
    expected = 1 - 2 * foreground / (2 * foreground + 0.01)
    assert SoftDiceCELoss()(prediction, target).item() == pytest.approx(expected, abs=1e-6)


def test_background_alone_is_defined():
    loss = SoftDiceCELoss()(
        torch.zeros(1, 4, 4, 4, requires_grad=True), torch.zeros(1, 4, 4).long()
    )
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("size", [(3, 2), (2, 2, 2)])
def test_loss_is_twice_differentiable(size):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(
        2, 4, *size, dtype=torch.float64, generator=generator, requires_grad=True
    )
    target = torch.randint(0, 4, (2, *size), generator=generator)
    loss = SoftDiceCELoss()
    assert gradcheck(lambda p: loss(p, target), prediction)
    assert gradgradcheck(lambda p: loss(p, target), prediction)


def test_loss_is_float32_under_autocast():
    target = torch.randint(0, 4, (2, 16, 16))
    prediction = torch.randn(2, 4, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = SoftDiceCELoss()(prediction, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, SoftDiceCELoss()(prediction.float(), target))


@pytest.mark.parametrize(
    ("prediction", "target"), [((2, 3, 4, 4), (2, 4, 4)), ((2, 4, 4, 4), (2, 4, 5))]
)
def test_shapes_that_do_not_fit_are_refused(prediction, target):
    with pytest.raises(ValueError, match="Expected"):
        SoftDiceCELoss()(torch.zeros(prediction), torch.zeros(target, dtype=torch.long))
