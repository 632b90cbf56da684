"""Means over seeds, and paired differences with their uncertainty."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from cggm.comparison.records import (
    FinishedRun,
    by_seed,
    methods,
    modality_names,
    of_method,
    of_task,
    seeds,
)
from cggm.display import Verdict, bootstrap_interval
from cggm.runs import find_metric

FEWEST_SEEDS = 5  # for a verdict
FEWEST_RANKED = 2  # one seed's order is that of chance


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a sample; NaN where too few values define them."""

    n: int
    mean: float
    sd: float


def spread(values: Iterable[float]) -> Spread:
    r"""Mean and standard deviation over seeds.

    .. math:: \bar x = \frac1n \sum_i x_i, \qquad s = \sqrt{\frac1{n-1} \sum_i (x_i - \bar x)^2}

    The standard deviation says how much one run differs from another, not how well the mean is
    known. It is undefined for a single value, the mean for none.

    Args:
        values: One per seed.
    """
    known = sorted(values)
    mean = fmean(known) if known else math.nan
    return Spread(len(known), mean, stdev(known) if len(known) > 1 else math.nan)


@dataclass(frozen=True)
class Difference:
    """A method minus the reference, over the seeds that both have.

    Args:
        n: Number of these seeds.
        mean: Mean difference, in the metric's unit; NaN without a seed.
        low: Lower end of the interval; NaN with fewer than five seeds.
        high: Upper end.
        verdict: What may be said.
    """

    n: int
    mean: float
    low: float
    high: float
    verdict: Verdict


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], *, lower_better: bool
) -> Difference:
    """Difference of two methods, paired by seed.

    The interval is that of ``bootstrap_interval``.
    With fewer than five common seeds there is none and nothing is decided. Else it is "better" or
    "worse" where the interval lies on one side of zero, and "no difference" where it contains zero:
    nothing was shown, which is not proof of equality. Each
    comparison errs in 5 % of the cases by itself; of twenty methods that change nothing, one is
    expected to look different.

    Args:
        values: The method's metric by seed.
        reference: The reference's.
        lower_better: Direction of the metric.
    """
    common = values.keys() & reference.keys()
    differences = [values[seed] - reference[seed] for seed in sorted(common)]
    low, high = bootstrap_interval(differences)
    verdict: Verdict = "no difference" if len(common) >= FEWEST_SEEDS else "not decided"
    if len(common) >= FEWEST_SEEDS and not low <= 0.0 <= high:
        verdict = "better" if (high < 0.0) == lower_better else "worse"
    return Difference(len(common), spread(differences).mean, low, high, verdict)


def compare(
    records: Sequence[FinishedRun], metric: str, *, reference: str = "joint"
) -> dict[str, Difference]:
    """Difference of every other method to the reference, see :func:`paired_difference`.

    Args:
        records: Of one task.
        metric: A key of ``test``; tells the direction.
        reference: What the others are compared with.

    Returns:
        By method; without the reference itself.
    """
    values = {
        name: by_seed(of_method(records, name), lambda r: r.test.get(metric))
        for name in methods(records)
    }
    base = values.pop(reference, {})
    lower_better = find_metric(metric).lower_is_better
    return {n: paired_difference(v, base, lower_better=lower_better) for n, v in values.items()}


@dataclass(frozen=True)
class MethodRank:
    """How a method ranks.

    Args:
        columns: Its rank by ``(task, metric)``, 1 is best; without the columns it has no value in.
        average: Over its tasks, of the mean over a task's metrics; NaN without a task.
        tasks: In how many tasks it has every metric, the ones that count.
        complete: Whether that is every task; other averages are not comparable.
    """

    columns: Mapping[tuple[str, str], float]
    average: float
    tasks: int
    complete: bool


def can_be_ranked(records: Sequence[FinishedRun]) -> bool:
    """Whether there are methods to rank, with two seeds at least: one seed's order is chance's.

    Args:
        records: Of any tasks and methods.
    """
    found = methods(records)
    return len(found) > 1 and max(seeds(of_method(records, n)) for n in found) >= FEWEST_RANKED


def one_sample(records: Sequence[FinishedRun], metric: str) -> float:
    """What one test sample moves a metric by: differences up to that rank nothing.

    Args:
        records: Of one task.
        metric: A key of ``test``.

    Returns:
        1/N of the smallest test split; 0 for a metric that counts no samples, or where no run
        tells how many there were.
    """
    known = [record.samples for record in records if record.samples]
    return (1 + 1e-6) / min(known) if known and find_metric(metric).counts else 0.0


def ranks_of(
    scores: Mapping[str, float], *, lower_better: bool, alike: float = 0.0
) -> dict[str, float]:
    r"""Ranks from 1, the best; equal scores share the mean of their ranks.

    .. math:: r_i = 1 + |\{j : x_j \succ x_i\}| + \tfrac12 |\{j \ne i : x_j = x_i\}|

    Args:
        scores: By method.
        lower_better: Direction of the scores.
        alike: Difference up to which scores count as equal.
    """
    sign = -1.0 if lower_better else 1.0
    x = sign * np.array([*scores.values()], float)
    ahead = x[None] - x[:, None]
    better, equal = (ahead > alike).sum(1), (abs(ahead) <= alike).sum(1)
    return dict(zip(scores, (1 + better + (equal - 1) / 2).tolist(), strict=True))


def average_ranks(
    records: Sequence[FinishedRun], metrics_by_task: Mapping[str, Sequence[str]]
) -> dict[str, MethodRank]:
    r"""Ranks of the methods by their means over seeds, averaged over tasks.

    .. math:: R_m = \frac1T \sum_t \frac1{K_t} \sum_k r_{m,t,k}

    Every task weighs the same, however many metrics it has. Ranks say nothing about how large a
    difference is, or whether there is one. A method that lacks a task is ranked among those present
    in the others and its average runs over these; it is marked as incomplete and comes last.
    Training on one modality alone is no method and is left out.

    Args:
        records: Of any tasks and methods.
        metrics_by_task: What to rank by.

    Returns:
        By method: complete ones first, the best average first.
    """
    alone = {f"unimodal_{name}" for name in modality_names(records)}
    names = [name for name in methods(records) if name not in alone]
    columns = {
        (task, metric): _rank_column(of_task(records, task), names, metric)
        for task, chosen in metrics_by_task.items()
        for metric in chosen
    }
    found = {name: _combine(columns, name) for name in names}
    return dict(sorted(found.items(), key=lambda item: (-item[1].tasks, item[1].average)))


def _rank_column(
    records: Sequence[FinishedRun], names: Sequence[str], metric: str
) -> dict[str, float]:
    values = {n: by_seed(of_method(records, n), lambda r: r.test.get(metric)) for n in names}
    means = {name: spread(found.values()).mean for name, found in values.items() if found}
    lower_better = find_metric(metric).lower_is_better
    return ranks_of(means, lower_better=lower_better, alike=one_sample(records, metric))


def _combine(columns: Mapping[tuple[str, str], Mapping[str, float]], name: str) -> MethodRank:
    own = {key: ranks[name] for key, ranks in columns.items() if name in ranks}
    tasks = list(dict.fromkeys(task for task, _ in columns))
    kept = [[own[key] for key in columns if key[0] == t] for t in tasks if _has(own, columns, t)]
    average = fmean(fmean(ranks) for ranks in kept) if kept else math.nan
    return MethodRank(own, average, len(kept), len(kept) == len(tasks))


def _has(own: Iterable[tuple[str, str]], columns: Iterable[tuple[str, str]], task: str) -> bool:
    return {key for key in columns if key[0] == task} <= set(own)
