"""Metrics of classification, of regression and of sentiment, under names that say what is counted.

A data set may bring metrics of its own, see ``TaskData``.
"""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cggm.runs import Metric, register_metrics

Values = NDArray[np.float64]
Classes = NDArray[np.int64]

CLASSIFICATION = (
    Metric("acc", "accuracy", "higher", counts=True),
    Metric("uar", "mean recall", "higher", counts=True),
    Metric("f1_macro", "macro F1", "higher", counts=True),
    Metric("f1_weighted", "weighted F1", "higher", counts=True),
)
"""Numbers that :func:`classification_metrics` gives, the most important one first."""

SENTIMENT = (
    Metric("mae", "mean absolute error", "lower"),
    Metric("corr", "correlation", "higher"),
    Metric("acc2_non0", "accuracy, negative or positive", "higher", counts=True),
    Metric("f1w_non0", "weighted F1, negative or positive", "higher", counts=True),
    Metric("acc7", "accuracy, 7 classes", "higher", counts=True),
    Metric("acc5", "accuracy, 5 classes", "higher", counts=True),
    Metric("acc2_has0_ge", "accuracy, < 0 or >= 0", "higher", counts=True),
    Metric("f1w_has0_ge", "weighted F1, < 0 or >= 0", "higher", counts=True),
    Metric("acc2_has0_gt", "accuracy, <= 0 or > 0", "higher", counts=True),
    Metric("f1w_has0_gt", "weighted F1, <= 0 or > 0", "higher", counts=True),
)
"""Numbers that :func:`sentiment_metrics` gives, the most important one first."""

REGRESSION = (
    SENTIMENT[0],
    Metric("rmse", "root mean squared error", "lower"),
    Metric("r2", "explained variance R2", "higher"),
    SENTIMENT[1],
)
"""Numbers that :func:`regression_metrics` gives, the most important one first."""

register_metrics(*CLASSIFICATION, *SENTIMENT, *REGRESSION)
_ORDER = list(dict.fromkeys(m.name for m in (*CLASSIFICATION, *SENTIMENT, *REGRESSION)))


def by_importance(names: Iterable[str]) -> list[str]:
    """Names of metrics, the most important ones first, those of a data set's own at the end.

    Args:
        names: In any order.
    """
    return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def is_own(name: str) -> bool:
    """Whether a metric is one that a data set brought, not one of this module.

    Args:
        name: Of the metric.
    """
    return name not in _ORDER


class ClassificationMetrics(TypedDict):
    """What :func:`classification_metrics` gives.

    Attributes:
        acc: Share of samples classified correctly ("weighted accuracy" in speech papers).
        uar: Mean recall of the classes that occur in the target ("unweighted accuracy").
        f1_macro: Mean F1 of the classes that occur in target or prediction.
        f1_weighted: Mean F1 of the classes, weighted by their number of samples.
        confusion: Samples by true class (row) and predicted class (column).
    """

    acc: float
    uar: float
    f1_macro: float
    f1_weighted: float
    confusion: list[list[int]]


def regression_metrics(prediction: ArrayLike, target: ArrayLike) -> dict[str, float | None]:
    """Metrics of any numbers.

    ``mae`` is the mean absolute error and ``rmse`` the root of the mean squared one, both in the
    unit of the target; ``r2`` compares the squared error with that of the target's mean, 0 being as
    bad and 1 perfect; ``corr`` is Pearson's correlation.

    Args:
        prediction: Finite values, shape ``(N,)``, an array or a CPU tensor.
        target: As the prediction.

    Returns:
        Metrics by name; ``r2`` is ``None`` if the target is constant, ``corr`` if either side is.

    Raises:
        ValueError: If the shapes differ, N is 0, or a value is not finite.
    """
    predicted, true = _pair(prediction, target)
    squared = float(np.square(predicted - true).mean())
    spread = float(true.var())
    return {
        "mae": float(np.abs(predicted - true).mean()),
        "rmse": squared**0.5,
        "r2": 1 - squared / spread if spread else None,
        "corr": _correlation(predicted, true),
    }


def sentiment_metrics(prediction: ArrayLike, target: ArrayLike) -> dict[str, float | None]:
    """Metrics of sentiment in [-3, 3], as published for CMU-MOSI and CMU-MOSEI.

    Two classes are made of the values in three ways that differ in what becomes of zero:
    ``has0_ge`` (at least zero, or below; all samples), ``has0_gt`` (above zero, or not; all
    samples) and ``non0`` (above zero, or not; without samples whose target is zero). ``acc2_*`` is
    the accuracy and ``f1w_*`` the F1 weighted by true support; papers that swap the two arguments
    of ``f1_score`` weight by predicted support. ``acc5`` and ``acc7`` clip both sides to [-2, 2]
    and [-3, 3] and round halves to even. ``mae`` and ``corr``, Pearson's correlation, take the
    values as they are.

    Args:
        prediction: Finite values, shape ``(N,)``, an array or a CPU tensor.
        target: As the prediction.

    Returns:
        Metrics by name; ``None`` where undefined: ``*_non0`` if every target is zero, ``corr`` if
        either side is constant.

    Raises:
        ValueError: If the shapes differ, N is 0, or a value is not finite.
    """
    predicted, true = _pair(prediction, target)
    nonzero = true != 0
    pairs = {
        "has0_ge": (predicted >= 0, true >= 0),
        "has0_gt": (predicted > 0, true > 0),
        "non0": (predicted[nonzero] > 0, true[nonzero] > 0),
    }
    return {
        **{f"acc2_{name}": _accuracy(*pair) for name, pair in pairs.items()},
        **{f"f1w_{name}": _weighted_f1(*pair) for name, pair in pairs.items()},
        "acc5": _accuracy(_rounded(predicted, 2), _rounded(true, 2)),
        "acc7": _accuracy(_rounded(predicted, 3), _rounded(true, 3)),
        "mae": float(np.abs(predicted - true).mean()),
        "corr": _correlation(predicted, true),
    }


def classification_metrics(
    prediction: ArrayLike, target: ArrayLike, classes: int
) -> ClassificationMetrics:
    """Accuracy, mean recall, F1 and confusion matrix.

    A class without any sample has no recall and is left out of ``uar``, as in scikit-learn's
    ``balanced_accuracy_score``; one that is predicted all the same counts as 0 in ``f1_macro``, as
    in its ``f1_score``.

    Args:
        prediction: Logits, shape ``(N, C)``, or classes, integers, shape ``(N,)``, an array or a
            CPU tensor.
        target: Classes, integers from 0 to C - 1, shape ``(N,)``.
        classes: Number of classes, C.

    Raises:
        ValueError: If the shapes do not fit, N is 0, a logit is not finite, or a class is unknown.
    """
    from sklearn.metrics import confusion_matrix, f1_score, recall_score

    predicted, true = _predicted_classes(prediction, classes), _classes("target", target, classes)
    if predicted.shape != true.shape:
        raise ValueError(
            f"Expected as many predictions as targets, but got {len(predicted)} and {len(true)}."
        )
    return {
        "acc": float((predicted == true).mean()),
        "uar": float(recall_score(true, predicted, labels=np.unique(true), average="macro")),
        "f1_macro": float(f1_score(true, predicted, average="macro")),
        "f1_weighted": float(f1_score(true, predicted, average="weighted", zero_division=0)),
        "confusion": confusion_matrix(true, predicted, labels=np.arange(classes)).tolist(),
    }


def _pair(prediction: ArrayLike, target: ArrayLike) -> tuple[Values, Values]:
    predicted, true = _values("prediction", prediction), _values("target", target)
    if predicted.shape != true.shape:
        raise ValueError(
            f"Expected as many predictions as targets, but got {predicted.shape} and {true.shape}."
        )
    return predicted, true


def _values(name: str, values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"Expected `{name}` of shape (N,), N > 0, but got {array.shape}.")
    _check_finite(name, array)
    return array


def _check_finite(name: str, array: Values) -> None:
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"Expected `{name}` to be finite, but {bad} of {array.size} values are NaN or infinite."
        )


def _predicted_classes(prediction: ArrayLike, classes: int) -> Classes:
    array = np.asarray(prediction)
    if array.ndim != 2:
        return _classes("prediction", array, classes)
    if array.shape[1] != classes:
        raise ValueError(f"Expected logits of {classes} classes, but got shape {array.shape}.")
    _check_finite("prediction", array)
    return array.argmax(1)


def _classes(name: str, values: ArrayLike, classes: int) -> Classes:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise ValueError(
            f"Expected `{name}` to be integers of shape (N,), N > 0, "
            f"but got {array.dtype} of shape {array.shape}."
        )
    if array.min() < 0 or array.max() >= classes:
        raise ValueError(
            f"Expected `{name}` to be classes from 0 to {classes - 1}, "
            f"but got {array.min()} to {array.max()}."
        )
    return array.astype(np.int64)


def _accuracy(predicted: NDArray[np.generic], true: NDArray[np.generic]) -> float | None:
    return float((predicted == true).mean()) if true.size else None


def _weighted_f1(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import f1_score

    if not true.size:
        return None
    return float(f1_score(true, predicted, average="weighted", zero_division=0))


def _rounded(values: Values, limit: int) -> Values:
    rounded: Values = np.rint(np.clip(values, -limit, limit))
    return rounded


def _correlation(predicted: Values, true: Values) -> float | None:
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return None
    with np.errstate(all="ignore"):  # differences too small or too large to be squared
        correlation = float(np.corrcoef(predicted, true)[0, 1])
    return correlation if np.isfinite(correlation) else None
