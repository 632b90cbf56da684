"""Sections of a regression's report: predicted against true values."""

import numpy as np
from numpy.typing import NDArray

from cggm.display import Cloud, ScatterChart, Values, bootstrap_intervals, number
from cggm.reports import Column, Section, figure, plain_table


def value_intervals(prediction: Values, target: Values) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over samples of mean absolute error and correlation.

    Args:
        prediction: Shape ``(N,)``.
        target: Shape ``(N,)``.
    """
    p, t = np.asarray(prediction, float), np.asarray(target, float)
    p, t = p - p.mean(), t - t.mean()  # moments of values near to zero keep their digits
    error = np.abs(np.asarray(prediction, float) - np.asarray(target, float))

    def metrics(counts: NDArray[np.int64]) -> dict[str, Values]:
        def mean(values: Values) -> Values:
            found: Values = counts @ values / len(values)
            return found

        covariance = mean(p * t) - mean(p) * mean(t)
        spread = (mean(p * p) - mean(p) ** 2) * (mean(t * t) - mean(t) ** 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"mae": mean(error), "corr": covariance / np.sqrt(spread)}

    found = bootstrap_intervals(metrics, np.ones(len(t), int))
    return {name: ends for name, ends in found.items() if np.isfinite(ends).all()}


def scatter_section(prediction: Values, target: Values) -> Section:
    """Predicted against true values, and errors by true value.

    Args:
        prediction: Shape ``(N,)``.
        target: Shape ``(N,)``.
    """
    p, t = np.asarray(prediction, float), np.asarray(target, float)
    chart = ScatterChart(
        "Predicted and true values",
        [Cloud("samples", t, p)],
        x_label="true",
        y_label="predicted",
        note="dashed: where both are equal",
        diagonal=True,
    )
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
    return Section("Predictions", figure(chart) + table)
