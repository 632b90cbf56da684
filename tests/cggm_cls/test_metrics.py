import warnings

import numpy as np
import pytest
import torch

from cggm.scores import ScoreTracker, Window, score_counts
from cggm_cls.metrics import (
    by_importance,
    classification_metrics,
    is_own,
    regression_metrics,
    sentiment_metrics,
)
from cggm_cls.training.balancing import accuracy, negative_mae


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_zero_belongs_to_the_class_that_the_name_says():
    target = [1.0, 2.0, 0.0, 0.0, -1.0, -2.0]
    prediction = [0.5, 0.0, 0.0, -0.5, 0.0, -0.5]
    metrics = sentiment_metrics(prediction, target)
    assert metrics["acc2_has0_ge"] == pytest.approx(4 / 6)  # wrong: 4th and 5th
    assert metrics["acc2_has0_gt"] == pytest.approx(5 / 6)  # wrong: 2nd
    assert metrics["acc2_non0"] == pytest.approx(3 / 4)  # wrong: 2nd


def test_f1_is_weighted_by_the_true_support():
    target = [1.0, 1.0, 1.0, -1.0]
    prediction = [1.0, 1.0, -1.0, -1.0]
    # F1 above zero 4/5, true support 3, predicted 2; below 2/3, true support 1, predicted 2
    expected = 3 / 4 * 4 / 5 + 1 / 4 * 2 / 3
    for name in ("f1w_has0_ge", "f1w_has0_gt", "f1w_non0"):
        assert sentiment_metrics(prediction, target)[name] == pytest.approx(expected)


def test_f1_differs_between_the_three_selections():
    target = [1.0, 0.0, -1.0, -1.0]
    prediction = [1.0, 1.0, -1.0, 0.0]
    metrics = sentiment_metrics(prediction, target)
    # ge: true ++--, predicted ++-+; gt: true +---, predicted ++--; non0: exact
    assert metrics["f1w_has0_ge"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics["f1w_has0_gt"] == pytest.approx(1 / 4 * 2 / 3 + 3 / 4 * 4 / 5)
    assert metrics["f1w_non0"] == 1.0


def test_halves_are_rounded_to_even_on_both_sides():
    # rounded: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2, -2.5 -> -2
    target = [0.0, 2.0, 2.0, 0.4, -2.0, -2.5]
    prediction = [0.5, 1.5, 2.5, -0.5, -1.5, -2.0]
    metrics = sentiment_metrics(prediction, target)
    assert metrics["acc7"] == 1.0
    assert metrics["acc5"] == 1.0
    assert sentiment_metrics([0.5, 1.5, 2.5], [1.0, 1.0, 3.0])["acc7"] == 0.0


def test_values_are_clipped_for_the_accuracies_and_not_for_the_errors():
    metrics = sentiment_metrics([5.0, -9.0, 2.4], [3.0, -2.0, 3.0])
    assert metrics["acc7"] == pytest.approx(1 / 3)
    assert metrics["acc5"] == 1.0
    assert metrics["mae"] == pytest.approx((2 + 7 + 0.6) / 3)


def test_correlation_of_a_known_vector():
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / 2
    assert sentiment_metrics([1.0, 2.0, 3.0], [0.0, 2.0, 1.0])["corr"] == pytest.approx(0.5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3])
def test_constant_predictions_have_no_correlation(constant):
    target = np.linspace(-3, 3, 31)
    metrics = sentiment_metrics(np.full(31, constant), target)
    assert metrics["corr"] is None
    assert metrics["acc2_has0_ge"] == pytest.approx(16 / 31)
    assert sentiment_metrics(target, np.full(31, constant))["corr"] is None


def test_tiny_differences_have_no_correlation_rather_than_a_warning():
    assert sentiment_metrics([0.0, 5e-324], [1.0, 2.0])["corr"] is None


def test_without_targets_other_than_zero_non0_is_undefined():
    metrics = sentiment_metrics([1.0, -1.0], [0.0, 0.0])
    assert metrics["acc2_non0"] is None
    assert metrics["f1w_non0"] is None
    assert metrics["acc2_has0_ge"] == 0.5
    assert metrics["acc2_has0_gt"] == 0.5


def test_one_sample():
    assert sentiment_metrics([1.0], [2.0]) == {
        "acc2_has0_ge": 1.0,
        "acc2_has0_gt": 1.0,
        "acc2_non0": 1.0,
        "f1w_has0_ge": 1.0,
        "f1w_has0_gt": 1.0,
        "f1w_non0": 1.0,
        "acc5": 0.0,
        "acc7": 0.0,
        "mae": 1.0,
        "corr": None,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_refused_with_their_number(bad):
    with pytest.raises(ValueError, match="`prediction` to be finite, but 2 of 3"):
        sentiment_metrics([bad, 0.0, bad], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`prediction` to be finite, but 1 of 4"):
        classification_metrics([[bad, 0.0], [0.0, 0.0]], [0, 1], 2)


@pytest.mark.parametrize(
    ("prediction", "target"), [([], []), ([1.0, 2.0], [1.0]), ([[1.0], [2.0]], [1.0, 2.0])]
)
def test_shapes_that_would_broadcast_or_are_empty_are_refused(prediction, target):
    with pytest.raises(ValueError, match="Expected"):
        sentiment_metrics(prediction, target)


def test_classification_by_hand():
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    logits = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    metrics = classification_metrics(logits, target, 3)
    # F1: class 0 4/5, class 1 2/4, class 2 2/3
    assert metrics["acc"] == pytest.approx(4 / 6)
    assert metrics["uar"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics["f1_macro"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert metrics["f1_weighted"] == pytest.approx((3 * 4 / 5 + 2 * 1 / 2 + 2 / 3) / 6)
    assert metrics["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert classification_metrics(logits.argmax(1), target, 3) == metrics


def test_a_class_that_occurs_nowhere_counts_in_no_mean():
    metrics = classification_metrics([0, 1, 1], [0, 0, 1], 4)
    assert metrics["uar"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["f1_macro"] == pytest.approx(2 / 3)
    assert metrics["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]


def test_a_class_that_is_only_predicted_counts_in_macro_f1_and_not_in_recall():
    metrics = classification_metrics([0, 2, 1], [0, 0, 1], 3)
    assert metrics["uar"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["f1_weighted"] == pytest.approx((2 * 2 / 3 + 1) / 3)


def test_one_class_predicted_for_all():
    metrics = classification_metrics([1, 1, 1, 1], [0, 1, 2, 2], 3)
    assert metrics["acc"] == 0.25
    assert metrics["uar"] == pytest.approx(1 / 3)
    assert metrics["f1_macro"] == pytest.approx(2 / 5 / 3)


@pytest.mark.parametrize(
    ("prediction", "target", "classes"),
    [
        ([0, 1], [0, 3], 3),
        ([0, -1], [0, 1], 3),
        ([0.0, 1.0], [0, 1], 3),
        ([0, 1], [0], 3),
        ([[0.0, 1.0]], [0], 3),
        ([], [], 3),
    ],
)
def test_classes_that_do_not_fit_are_refused(prediction, target, classes):
    with pytest.raises(ValueError, match="Expected"):
        classification_metrics(prediction, target, classes)


def test_scores_by_hand():
    assert negative_mae(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, 2.0])) == -2.0
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert accuracy(logits, torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("score", [negative_mae, accuracy])
def test_scores_of_unequal_micro_batches_sum_to_that_of_the_batch(score):
    torch.manual_seed(0)
    if score is accuracy:
        prediction, target = torch.randn(7, 3), torch.randint(3, (7,))
    else:
        prediction, target = torch.randn(7), torch.randn(7)
    window = Window()
    for part in (slice(0, 4), slice(4, 6), slice(6, 7)):
        counts = score_counts(score, prediction[part], target[part])[None]
        window.gather(counts=counts, seen=torch.ones(1))
    assert ScoreTracker(1).scores(window).item() == pytest.approx(
        score(prediction, target).item(), rel=1e-6
    )


def test_a_perfect_error_of_zero_is_the_best_score():
    exact, near = torch.zeros(2), torch.full((2,), 0.1)
    assert negative_mae(exact, exact) == 0.0
    assert negative_mae(near, exact) < negative_mae(exact, exact)


def test_regression_is_measured_in_the_unit_of_its_target():
    metrics = regression_metrics([100.0, 220.0, 300.0], [100.0, 200.0, 330.0])
    assert metrics["mae"] == pytest.approx(50 / 3)
    assert metrics["rmse"] == pytest.approx((1300 / 3) ** 0.5)
    # the target's mean is 210, its squared deviations 12100, 100 and 14400
    assert metrics["r2"] == pytest.approx(1 - 1300 / 26600)
    assert metrics["corr"] == pytest.approx(np.corrcoef([100, 220, 300], [100, 200, 330])[0, 1])
    assert regression_metrics([210.0] * 3, [100.0, 200.0, 330.0])["r2"] == pytest.approx(
        0, abs=1e-12
    )
    constant = regression_metrics([1.0, 2.0], [3.0, 3.0])
    assert constant["r2"] is None
    assert constant["corr"] is None


def test_metrics_of_a_data_set_come_last():
    assert by_importance(["mine", "corr", "acc7", "mae"]) == ["mae", "corr", "acc7", "mine"]
    assert [name for name in ("acc", "rmse", "mine") if is_own(name)] == ["mine"]
