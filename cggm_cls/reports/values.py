"""Sections of a regression's report: predicted against true values."""

import numpy as np

from cggm.reports import Column, Section, number, plain_table, scatter_chart
from cggm_cls.reports.samples import RESAMPLES, Interval, Values, interval


def value_intervals(prediction: Values, target: Values) -> dict[str, Interval]:
    """95 % percentile bootstrap intervals over samples of mean absolute error and correlation.

    Args:
        prediction: Shape ``(N,)``.
        target: Shape ``(N,)``.
    """
    rng = np.random.default_rng(0)
    # Each row is a sample of the test split with replacement, of the size of the split.
    chosen = rng.integers(len(target), size=(RESAMPLES, len(target)))
    p, t = np.asarray(prediction, float)[chosen], np.asarray(target, float)[chosen]
    found = {"mae": np.abs(p - t).mean(1)}
    p, t = p - p.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    spread = np.sqrt((p * p).sum(1) * (t * t).sum(1))
    if (spread > 0).all():  # else some resampled sides are constant and have no correlation
        found["corr"] = (p * t).sum(1) / spread
    return {name: interval(values) for name, values in found.items()}


def scatter_section(prediction: Values, target: Values) -> Section:
    """Predicted against true values, and errors by true value.

    Args:
        prediction: Shape ``(N,)``.
        target: Shape ``(N,)``.
    """
    p, t = np.asarray(prediction, float), np.asarray(target, float)
    chart = scatter_chart(
        "Predicted and true values", t, p, x_label="true", y_label="predicted",
        note="dashed: where both are equal",
    )  # fmt: skip
    edges = np.unique(np.quantile(t, np.linspace(0, 1, 6)))
    bins = np.clip(np.searchsorted(edges, t, "right") - 1, 0, max(len(edges) - 2, 0))
    groups = [bins == b for b in np.unique(bins)]
    table = plain_table(
        "Errors by true value",
        [
            Column(
                "true value",
                [f"{number(t[g].min(), 2)} to {number(t[g].max(), 2)}" for g in groups],
            ),
            Column("samples", [int(g.sum()) for g in groups], digits=0),
            Column("mean error", [float((p - t)[g].mean()) for g in groups]),
            Column("mean absolute error", [float(np.abs(p - t)[g].mean()) for g in groups]),
        ],
    )
    return Section("Predictions", chart + table)
