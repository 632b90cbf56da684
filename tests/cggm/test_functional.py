"""Formulas by hand-computed numbers, finite differences and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from cggm.functional import (
    TERMS,
    balancing_terms,
    cosines,
    direction_loss,
    ema_gains,
    gated_terms,
    last_layer_gradient,
    signal_gates,
    weight_gradient,
)
from tests.cggm.direction import Problem, check_direction_loss

BOUNDS = {"abs": (0, 2), "relu": (0, 1), "softmax": (0, 3)}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_equation_7_by_hand():
    # S = 0.5; 1.2 * (0.2, 0.4, 0.4) / 0.5
    for kind in ("raw", "abs", "relu"):
        assert_close(balancing_terms(tensor(0.3, 0.1, 0.1), 1.2, kind), tensor(0.48, 0.96, 0.96))


def test_terms_of_mixed_signs_by_hand():
    gains = tensor(0.4, -0.1, 0.1)
    assert_close(balancing_terms(gains, 1.0, "raw"), tensor(0.0, 1.25, 0.75))
    assert_close(balancing_terms(gains, 1.0, "abs"), tensor(1 / 3, 7 / 6, 5 / 6))
    assert_close(balancing_terms(gains, 1.0, "relu"), tensor(0.2, 1.0, 0.8))
    # mean |d| = 0.2, so softmax(-2, 0.5, -0.5) * 2
    weights = [math.exp(-2), math.exp(0.5), math.exp(-0.5)]
    expected = tensor(*(2 * w / sum(weights) for w in weights))
    assert_close(balancing_terms(gains, 1.0, "softmax"), expected)


def test_gates_are_shares_of_the_best_signal():
    assert_close(signal_gates(tensor(0.4, 0.1, -0.2)), tensor(1.0, 0.25, 0.0))
    assert_close(signal_gates(tensor(-0.4, 0.0)), tensor(0.0, 0.0))
    assert_close(signal_gates(tensor(0.4, math.nan)), tensor(1.0, 0.0))


def test_gated_terms_by_hand():
    # gated gains .3 .05 0, so 1/7 6/7 1 before trust .5 .5 0 draws them to 2/3
    found = gated_terms(tensor(0.3, 0.1, 0.1), tensor(1.0, 0.5, 0.0), 1.2)
    assert_close(found, 1.2 * tensor(17 / 42, 16 / 21, 2 / 3))


@pytest.mark.parametrize("kind", TERMS)
def test_open_gates_leave_the_terms_as_they_are(kind):
    for gains in (tensor(0.3, -0.2, 0.1), tensor(0.0, 0.0), tensor(0.7), torch.randn(4)):
        expected = balancing_terms(gains, 1.3, kind)
        assert torch.equal(gated_terms(gains, torch.ones_like(gains), 1.3, kind), expected)


def test_a_modality_without_signal_changes_nothing():
    gates = tensor(1.0, 0.8, 0.0)
    found = gated_terms(tensor(0.3, 0.1, 0.7), gates)
    assert_close(found, gated_terms(tensor(0.3, 0.1, -0.4), gates))
    assert_close(found[2], tensor(2 / 3)[0])
    # alone with a signal, a modality is not ahead of anyone
    assert_close(gated_terms(tensor(0.3, 0.1), tensor(1.0, 0.0)), tensor(0.5, 0.5))
    # two equally good ones trust each other
    alike = gated_terms(tensor(0.3, 0.1), tensor(1.0, 1.0))
    assert_close(alike, tensor(0.25, 0.75))


def test_released_terms_by_hand():
    gains = tensor(0.2, -0.2 + 1e-8)
    # the sum is 1e-8, the guard adds as much: 1 - 0.2 / 2e-8
    assert_close(balancing_terms(gains, 1.0, "released")[0].item(), 1 - 1e7, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", TERMS)
def test_neutral_where_undefined(kind):
    neutral = tensor(1.5, 1.5, 1.5, 1.5)
    for bad in (math.nan, math.inf):
        assert_close(balancing_terms(tensor(0.1, bad, 0.2, 0.1), 2.0, kind), neutral)
    if kind != "released":
        assert_close(balancing_terms(torch.zeros(4, dtype=torch.float64), 2.0, kind), neutral)


def test_raw_is_neutral_where_gains_cancel():
    assert_close(balancing_terms(tensor(0.25, -0.25), 1.3, "raw"), tensor(0.65, 0.65))


@pytest.mark.parametrize("size", [24, 48, 50, 64, 100, 1000])
def test_raw_is_neutral_where_gains_of_accuracies_cancel_but_for_rounding(size):
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randint(size // 4, size // 2, (2, 500, 3), generator=generator)
    after[:, 2] = before.sum(1) - after[:, :2].sum(1)
    before, after = before.float() / size, after.float() / size
    terms = [balancing_terms(b - a, 1.2, "raw") for a, b in zip(before, after, strict=True)]
    assert_close(torch.stack(terms), torch.full((500, 3), 0.8))
    # one sample more is no cancellation: sizes of the gains over the sum, which is 1 / size
    gain = after[0] - before[0]
    more = gain + torch.tensor([1.0, 0.0, 0.0]) / size
    expected = 1.2 * (1 - more * size)
    assert_close(balancing_terms(more, 1.2, "raw"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", TERMS)
def test_one_modality_is_left_alone(kind):
    assert balancing_terms(tensor(0.3), 1.3, kind).tolist() == [1.0]


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"Expected `kind`.*'abs'.*but got 'rel'"):
        balancing_terms(tensor(1.0, 2.0), kind="rel")


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6), st.floats(0.1, 3))
def test_raw_terms_sum_to_m_minus_1(gains, rho):
    terms = balancing_terms(tensor(*gains), rho, "raw")
    assert_close(terms.sum().item(), rho * (len(gains) - 1), rtol=1e-9, atol=1e-9)


@given(st.permutations(range(4)))
def test_terms_follow_a_permutation_of_modalities(order):
    gains = tensor(0.3, -0.1, 0.05, 0.2)
    for kind in TERMS:
        assert_close(
            balancing_terms(gains[list(order)], 1.0, kind),
            balancing_terms(gains, 1.0, kind)[list(order)],
        )


@pytest.mark.parametrize("kind", TERMS)
def test_a_million_random_gains_give_finite_terms_within_bounds(kind):
    generator = torch.Generator().manual_seed(0)
    gains = torch.randn(1_000_000, 4, generator=generator)
    gains *= 10.0 ** torch.randint(-42, 30, (1_000_000, 1), generator=generator)
    gains[::7] = gains[::7].round(decimals=1)
    gains[::11, 0] = -gains[::11, 1:].sum(1)
    gains[::1001] = 0
    gains[::1003, 2] = math.nan
    gains[::1009, 1] = math.inf
    terms = torch.vmap(lambda g: balancing_terms(g, 1.0, kind))(gains)
    assert terms.isfinite().all()
    if kind in BOUNDS:
        low, high = BOUNDS[kind]
        assert low - 1e-6 <= terms.min() <= terms.max() <= high + 1e-6


def test_ema_gains_by_hand():
    # scores 1, 3: fast = .9 * .1 + .1 * 3 over 1 - .81, slow = .99 * .01 + .01 * 3 over 1 - .9801
    fast, slow = tensor(0.39), tensor(0.0399)
    expected = 0.39 / 0.19 - 0.0399 / 0.0199
    assert_close(ema_gains(fast, slow, tensor(2.0)[0], (0.9, 0.99)).item(), expected)


def test_weight_gradient_by_hand():
    delta, u = tensor(1.0, 2.0).view(1, 2), tensor(3.0, 5.0, 7.0).view(1, 3)
    expected = torch.tensor([[3.0, 5.0, 7.0], [6.0, 10.0, 14.0]], dtype=torch.float64)
    assert_close(weight_gradient(delta, u, channels_last=True), expected)
    as_maps = weight_gradient(delta[..., None, None], u[..., None, None], channels_last=False)
    assert_close(as_maps, expected)


def test_cosines_by_hand():
    heads = torch.stack([tensor(1.0, 0.0), tensor(0.0, 0.0), tensor(-3.0, -4.0)])[:, None]
    assert_close(cosines(tensor(3.0, 4.0)[None], heads), tensor(0.6, 0.0, -1.0))


def test_cosine_of_a_zero_gradient_has_no_gradient():
    fused = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    direction_loss(fused, tensor(1.0, 2.0).view(1, 1, 2), tensor(1.0)).backward()
    assert_close(fused.grad, torch.zeros(1, 2, dtype=torch.float64))


def test_direction_loss_by_hand():
    heads = torch.stack([tensor(1.0, 0.0), tensor(0.0, 1.0)])[:, None]
    # |B| - B cos: 0.5 - 0.5 * 0.6 = 0.2 and 2 + 2 * 0.8 = 3.6
    loss = direction_loss(tensor(3.0, 4.0)[None], heads, tensor(0.5, -2.0))
    assert_close(loss.item(), 1.9)


class OneHotBCE(nn.Module):
    """Binary cross-entropy of each class."""

    def forward(self, prediction, target):
        one_hot = nn.functional.one_hot(target, 4).movedim(-1, 1).to(prediction)
        return nn.functional.binary_cross_entropy_with_logits(prediction, one_hot)


WEIGHTS = torch.tensor([0.2, 0.3, 0.25, 0.25], dtype=torch.float64)
PROBLEMS = {
    "cross-entropy": lambda: Problem(nn.CrossEntropyLoss(), 0),
    "weighted cross-entropy": lambda: Problem(nn.CrossEntropyLoss(WEIGHTS), 0),
    "l1": lambda: Problem(nn.L1Loss(), 0),
    "binary cross-entropy on maps": lambda: Problem(OneHotBCE(), 2, True),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_direction_loss_is_differentiable(name):
    check_direction_loss(PROBLEMS[name]())


def test_half_precision_gradient_does_not_vanish():
    layer = nn.Conv2d(4, 2, 1)
    u = torch.randn(1, 4, 256, 256)
    target = torch.randint(0, 2, (1, 256, 256))
    z = layer(u)
    exact = last_layer_gradient(nn.functional.cross_entropy(z, target), u, z, channels_last=False)
    half = layer(u).half()
    loss = nn.functional.cross_entropy(half.float(), target)
    found = last_layer_gradient(loss, u.half(), half, channels_last=False)
    assert found.dtype == torch.float32
    assert_close(found, exact, rtol=2e-2, atol=1e-5)


class Marked(torch.Tensor):
    """A tensor that carries more than numbers, as MONAI's do."""


def test_gradients_of_tensors_that_carry_more_are_plain():
    layer = torch.nn.Linear(3, 2)
    taken = torch.ones(4, 3).as_subclass(Marked)
    said = layer(taken)
    gradient = last_layer_gradient(said.square().mean(), taken, said, channels_last=True)
    assert type(gradient) is torch.Tensor
