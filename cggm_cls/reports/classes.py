"""Sections of a classifier's report: confusions of classes, and calibration of its confidence."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cggm.reports import (
    GRAY,
    Column,
    Line,
    Section,
    line_chart,
    number,
    plain_table,
    sortable_table,
)
from cggm_cls.reports.samples import RESAMPLES, Interval, Values, interval

_BINS = 10
_MOST_CLASSES = 20
_PAIRS = 20


def class_intervals(confusion: NDArray[np.int64]) -> dict[str, Interval]:
    """95 % percentile bootstrap intervals over samples of accuracy, mean recall and macro F1.

    Resampled samples give a multinomial confusion matrix, hence no predictions are needed.

    Args:
        confusion: Samples by true and predicted class, shape ``(C, C)``.
    """
    rng, total = np.random.default_rng(0), int(confusion.sum())
    pairs = np.flatnonzero(confusion)  # of true and predicted class, those that occur
    drawn = rng.multinomial(total, confusion.ravel()[pairs] / total, size=RESAMPLES)
    found = [_class_metrics(row, pairs, len(confusion)) for row in drawn]
    return {name: interval(np.array([m[name] for m in found])) for name in found[0]}


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
    diagonal = Line("as it should be", np.array([0.0, 1]), np.array([0.0, 1]), GRAY)
    chart = line_chart(
        "Share of right predictions by confidence",
        [Line("this network", means[0], means[1], 0), diagonal],
        x_label="confidence",
        named=True,
    )
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
    return Section("Calibration", Markup("<p>{}</p>{}{}").format(text, chart, table))


def _class_metrics(counts: np.ndarray, pairs: np.ndarray, size: int) -> Mapping[str, float]:
    rows, columns = np.divmod(pairs, size)
    true, predicted = (np.bincount(i, counts, size) for i in (rows, columns))
    same = rows == columns
    hits = np.bincount(rows[same], counts[same], size)
    seen, found = true > 0, true + predicted > 0
    return {
        "acc": float(hits.sum() / counts.sum()),
        "uar": float((hits[seen] / true[seen]).mean()),
        "f1_macro": float((2 * hits[found] / (true + predicted)[found]).mean()),
    }


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
