"""Sections of a classifier's report: confusions of classes, and calibration of its confidence."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cggm.display import GRAY, Line, LineChart, Values, bootstrap_intervals, number
from cggm.reports import Column, Section, figure, plain_table, sortable_table

Interval = tuple[float, float]
_BINS = 10
_MOST_CLASSES = 20
_PAIRS = 20


def class_intervals(confusion: NDArray[np.int64]) -> dict[str, Interval]:
    """95 % bootstrap intervals over samples of accuracy, mean recall and macro F1.

    Samples of one true and one predicted class are alike, hence no predictions are needed.

    Args:
        confusion: Samples by true and predicted class, shape ``(C, C)``.
    """
    cells = np.flatnonzero(confusion)
    rows, columns = np.divmod(cells, len(confusion))
    one_hot = np.eye(len(confusion))
    in_row, in_column = one_hot[rows], one_hot[columns]  # (K, C)
    hits_of = in_row * (rows == columns)[:, None]

    def metrics(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        hits, true, predicted = (counts @ part for part in (hits_of, in_row, in_column))  # (R, C)
        # As in :mod:`cggm_cls.metrics`: a class without a sample has no recall, one that occurs
        # neither as true nor as predicted has no F1.
        return {
            "acc": hits.sum(1) / counts.sum(1),
            "uar": _mean_ratio(hits, true),
            "f1_macro": _mean_ratio(2 * hits, true + predicted),
        }

    return bootstrap_intervals(metrics, confusion.ravel()[cells])


def confusion_section(confusion: NDArray[np.int64], names: Sequence[str] = ()) -> Section:
    """Confusions of classes: a matrix of few classes, the most frequent confusions of many.

    Args:
        confusion: Samples by true and predicted class, shape ``(C, C)``.
        names: Of the classes; numbers where not given.
    """
    classes = list(names) or [f"class {i}" for i in range(len(confusion))]
    table = _matrix(confusion, classes) if len(classes) <= _MOST_CLASSES else Markup()
    return Section("Confusions", table + _by_class(confusion, classes) + _pairs(confusion, classes))


def calibration_section(prediction: Values, target: NDArray[np.int64]) -> Section:
    """How often predictions of a given confidence are right, in ten bins of equal width.

    Args:
        prediction: Logits, shape ``(N, C)``.
        target: Classes, shape ``(N,)``.
    """
    logits = np.asarray(prediction, float)
    odds = np.exp(logits - logits.max(1, keepdims=True))  # softmax that cannot overflow
    confidence = odds.max(1) / odds.sum(1)
    right = (logits.argmax(1) == target).astype(float)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    used = np.unique(bins)
    means = np.array([[v[bins == b].mean() for b in used] for v in (confidence, right)])
    counts = np.array([(bins == b).sum() for b in used])
    error = float((counts * np.abs(means[1] - means[0])).sum() / len(target))
    ends = np.array([0.0, 1.0])
    lines = [Line("this network", means[0], means[1], 0), Line("as it should be", ends, ends, GRAY)]
    title = "Share of right predictions by confidence"
    chart = LineChart(title, lines, "confidence", named=True)
    too = "too sure" if (confidence.mean() > right.mean()) else "not sure enough"
    text = (
        f"Expected calibration error {number(error)}: confidence is {number(confidence.mean())} on "
        f"average and {number(right.mean())} of the predictions are right; the network is {too}."
    )
    table = plain_table(
        "Predictions by confidence",
        [
            Column("confidence", [f"{b / _BINS:.1f} to {(b + 1) / _BINS:.1f}" for b in used]),
            Column("samples", counts.tolist(), digits=0),
            Column("right", means[1].tolist()),
        ],
    )
    return Section("Calibration", Markup("<p>{}</p>{}{}").format(text, figure(chart), table))


def _mean_ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over the classes, shape ``(R,)``, of those whose denominator is not 0."""
    ratios = numerators / np.maximum(denominators, 1)
    mean: NDArray[np.float64] = ratios.sum(1) / (denominators > 0).sum(1)
    return mean


def _matrix(confusion: np.ndarray, classes: list[str]) -> Markup:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    columns = [
        Column(name, shares[:, i].tolist(), digits=2, heat=True, scale=(0.0, 1.0))
        for i, name in enumerate(classes)
    ]
    head = Column("true \\ predicted", classes)
    samples = Column("samples", confusion.sum(1).tolist(), digits=0)
    caption = "Share of each true class (row) by predicted class (column)"
    return plain_table(caption, [head, *columns, samples])


def _by_class(confusion: np.ndarray, classes: list[str]) -> Markup:
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / true, hits / predicted
    order = np.argsort(recall, kind="stable")
    columns = [
        Column("class", [classes[i] for i in order]),
        Column("recall", recall[order].tolist(), heat=True, scale=(0.0, 1.0)),
        Column("precision", precision[order].tolist()),
        Column("samples", true[order].tolist(), digits=0),
    ]
    return Markup("<h3>By class</h3>") + sortable_table(
        "Classes, the worst recall first", columns, sorted_by=1
    )


def _pairs(confusion: np.ndarray, classes: list[str]) -> Markup:
    wrong = confusion - np.diag(np.diag(confusion))
    largest = np.argsort(-wrong.ravel(), kind="stable")[:_PAIRS]
    rows = [divmod(int(i), len(classes)) for i in largest if wrong.ravel()[i]]
    if not rows:
        return Markup()
    columns = [
        Column("true class", [classes[a] for a, _ in rows]),
        Column("predicted as", [classes[b] for _, b in rows]),
        Column("samples", [int(confusion[pair]) for pair in rows], digits=0),
        Column(
            "share of the class", [float(confusion[a, b] / confusion[a].sum()) for a, b in rows]
        ),
    ]
    return Markup("<h3>Largest confusions</h3>") + plain_table("Pairs by samples", columns)
