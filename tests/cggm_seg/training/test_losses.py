import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from cggm_seg.training.losses import SoftDiceCELoss

DICE = ("regions", "classes", "foreground")


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


@pytest.mark.parametrize(
    ("dice", "loss"),
    [
        # WT: p = 0.5 and 0.75; TC, the classes 1 and 3: p = 0.375 and 0.5; ET is not in the batch.
        ("regions", 1 - (2 * 0.5 / (1.25 + 1 + 0.01) + 2 * 0.375 / (0.875 + 1 + 0.01)) / 2),
        # NCR alone is in the batch: p = 0.25 and 0.25.
        ("classes", 1 - 2 * 0.25 / (0.5 + 1 + 0.01)),
        ("foreground", 1 - 2 * 0.25 / (1.25 + 1 + 0.01)),
    ],
)
def test_dice_terms_of_two_pixels_by_hand(dice, loss):
    probability = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    prediction = probability.log().T.reshape(1, 4, 1, 2)
    target = torch.tensor([[[1, 0]]])
    found = SoftDiceCELoss(ce_weight=0.0, dice=dice)(prediction, target)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    whole = SoftDiceCELoss(dice=dice)(prediction, target)
    assert whole.item() == pytest.approx(loss + 1.3862944, abs=1e-6)


@pytest.mark.parametrize("dice", ["regions", "classes"])
def test_terms_of_several_pixels_are_those_of_each_region(dice):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 5, 6), generator=generator)
    p = prediction.softmax(1)
    groups = [(3,), (1, 3), (1, 2, 3)] if dice == "regions" else [(1,), (2,), (3,)]
    scores = []
    for classes in groups:
        own = sum(p[:, k] for k in classes)
        truth = sum((target == k).double() for k in classes)
        scores.append(2 * (own * truth).sum() / (own.sum() + truth.sum() + 0.01))
    expected = 1 - sum(scores) / 3
    loss = SoftDiceCELoss(ce_weight=0.0, dice=dice)(prediction, target)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("size", [1, 10, 50])
def test_a_missed_region_costs_a_third_however_small(size):
    target = torch.full((1, 10, 10), 2)
    target[0].view(-1)[:size] = 3
    missed = 100.0 * F.one_hot(torch.where(target == 3, 1, target), 4).movedim(-1, 1)
    regions = SoftDiceCELoss(ce_weight=0.0, dice="regions")(missed, target).item()
    assert regions == pytest.approx(1 / 3, abs=3e-3)  # WT and TC are right
    # All at once it costs no more than its share of the pixels.
    foreground = SoftDiceCELoss(ce_weight=0.0)(missed, target).item()
    assert foreground == pytest.approx(size / 100, abs=1e-4)


@pytest.mark.parametrize("dice", ["regions", "classes"])
def test_what_is_not_in_the_batch_has_no_dice_gradient(dice):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, 8, 8, generator=generator)
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    gradients = []
    for ce_weight in (1.0, 0.0):
        prediction = start.clone().requires_grad_()
        loss = SoftDiceCELoss(ce_weight=ce_weight, dice=dice)(prediction, target)
        gradients += torch.autograd.grad(loss, prediction)
    # Without any lesion the cross-entropy alone acts, against all of what is no background.
    assert torch.equal(gradients[1], torch.zeros_like(start))
    assert (gradients[0][:, 1:] > 0).all()

    target[0, 2:5, 2:5] = 1  # NCR: WT and TC, but no ET
    prediction = start.clone().requires_grad_()
    loss = SoftDiceCELoss(ce_weight=0.0, dice=dice)(prediction, target)
    (gradient,) = torch.autograd.grad(loss, prediction)
    # Where no lesion is, nothing asks for ET more than for background; the factors are softmax's.
    per_class = (gradient / start.softmax(1)).movedim(1, 0)[:, target == 0]
    assert (per_class[3] >= per_class[0] - 1e-8).all()
    assert gradient.abs().max() < 2 / 9  # no more than one pixel of nine is worth


def test_dice_of_few_pixels_of_many_is_exact_in_half_precision():
    # 2 ** 20 pixels, of which three are ET: sums of half-precision numbers would lose them.
    target = torch.zeros(1, 1024, 1024, dtype=torch.long)
    target[0, 5, 5:8] = 3
    prediction = (12.0 * F.one_hot(target, 4).movedim(-1, 1)).bfloat16()
    loss = SoftDiceCELoss(ce_weight=0.0, dice="regions")(prediction, target).item()
    exact = SoftDiceCELoss(ce_weight=0.0, dice="regions")(prediction.double(), target).item()
    assert 0.1 < exact < 0.8
    assert loss == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dice": "macro"}, "Expected `dice` to be one of"),
        ({"dice": "regions", "class_weights": (1.0, 2.0, 2.0)}, "Choose dice='classes'"),
    ],
)
def test_terms_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoftDiceCELoss(**settings)


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


@pytest.mark.parametrize("dice", DICE)
def test_background_alone_is_defined(dice):
    loss = SoftDiceCELoss(dice=dice)(
        torch.zeros(1, 4, 4, 4, requires_grad=True), torch.zeros(1, 4, 4).long()
    )
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("dice", DICE)
@pytest.mark.parametrize("size", [(3, 2), (2, 2, 2)])
def test_loss_is_twice_differentiable(size, dice):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(
        2, 4, *size, dtype=torch.float64, generator=generator, requires_grad=True
    )
    target = torch.randint(0, 4, (2, *size), generator=generator)
    loss = SoftDiceCELoss(dice=dice)
    assert gradcheck(lambda p: loss(p, target), prediction)
    assert gradgradcheck(lambda p: loss(p, target), prediction)


@pytest.mark.parametrize("dice", DICE)
def test_loss_is_float32_under_autocast(dice):
    target = torch.randint(0, 4, (2, 16, 16))
    prediction = torch.randn(2, 4, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = SoftDiceCELoss(dice=dice)(prediction, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, SoftDiceCELoss(dice=dice)(prediction.float(), target))


@pytest.mark.parametrize(
    ("prediction", "target"), [((2, 3, 4, 4), (2, 4, 4)), ((2, 4, 4, 4), (2, 4, 5))]
)
def test_shapes_that_do_not_fit_are_refused(prediction, target):
    with pytest.raises(ValueError, match="Expected"):
        SoftDiceCELoss()(torch.zeros(prediction), torch.zeros(target, dtype=torch.long))
