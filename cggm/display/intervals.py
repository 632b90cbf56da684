"""Intervals of statistics by the bootstrap, one way for all that the project shows."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Statistics = Callable[[Counts], Mapping[str, NDArray[np.float64]]]
RESAMPLES = 10_000
FEWEST = 5  # values; an interval of fewer promises more than it keeps, see the table below
_AT_ONCE = 2_000_000  # numbers of a block of resamples, 16 MB


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean, see :func:`bootstrap_intervals`.

    Args:
        values: Independent values; their order does not matter.

    Returns:
        Lower and upper end: NaN for fewer than five values, a point where all are equal.
    """
    x = np.sort(np.asarray(values, float))

    def mean(counts: Counts) -> dict[str, NDArray[np.float64]]:
        return {"mean": counts @ x / len(x)}

    return bootstrap_intervals(mean, np.ones(len(x), int)).get("mean", (math.nan, math.nan))


def bootstrap_intervals(
    statistics: Statistics, samples: ArrayLike
) -> dict[str, tuple[float, float]]:
    r"""95 % confidence intervals by the expanded percentile bootstrap (Hesterberg, 2015).

    Quantiles :math:`\alpha` and :math:`1 - \alpha` of the statistic of 10,000 resamples under a
    fixed seed, with

    .. math:: \alpha = \Phi\left(-\sqrt{n / (n - 1)}\; t_{0.975, n - 1}\right)

    so that few values are not taken for many: the plain percentile interval is too narrow. The
    interval of a mean never leaves the range of the values. Its measured coverage, from 4,000
    samples each:

    ===================  ==========  ========
    values               percentile  expanded
    ===================  ==========  ========
    normal, n = 3        0.745       0.745
    normal, n = 5        0.844       0.924
    normal, n = 10       0.891       0.937
    exponential, n = 5   0.795       0.878
    exponential, n = 10  0.858       0.905
    ===================  ==========  ========

    The bootstrap-t covers no worse, but is of no use for few values: near ties in a sample of five
    make an end far or infinite, and differences of ten standard deviations read as none.

    Args:
        statistics: From how often each sample was drawn, shape ``(R, K)`` for R resamples, to
            statistics by name, shape ``(R,)`` each.
        samples: How many independent samples are alike, shape ``(K,)``: ones where each has its
            own value, the cells of a confusion matrix where they have classes.

    Returns:
        Lower and upper end by name; empty for fewer than five samples.
    """
    from scipy.stats import norm, t

    alike = np.asarray(samples, int)
    n = int(alike.sum())
    if n < FEWEST:
        return {}
    parts = [statistics(counts) for counts in _resampled(alike)]
    tail = float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))
    found = {}
    for name in parts[0]:
        low, high = np.quantile(np.concatenate([part[name] for part in parts]), [tail, 1 - tail])
        found[name] = float(low), float(high)
    return found


def _resampled(alike: Counts) -> Iterator[Counts]:
    """How often each sample was drawn, block by block, shape ``(R, K)``."""
    rng = np.random.default_rng(0)
    n, kinds = int(alike.sum()), len(alike)
    rows = max(1, _AT_ONCE // kinds)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        if n > kinds:  # a resample of samples that are alike is multinomial
            yield rng.multinomial(n, alike / n, size=size)
            continue
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
