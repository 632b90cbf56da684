"""Ranks of methods per metric and on average over tasks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from cggm.comparison.records import Record, by_seed, methods, modalities, of_method, of_task
from cggm.comparison.statistics import lower_is_better, summarize


@dataclass(frozen=True)
class Rank:
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


def rank(scores: Mapping[str, float], *, lower_better: bool) -> dict[str, float]:
    r"""Ranks from 1, the best; equal scores share the mean of their ranks.

    .. math:: r_i = 1 + |\{j : x_j \succ x_i\}| + \tfrac12 |\{j \ne i : x_j = x_i\}|

    Args:
        scores: By method.
        lower_better: Direction of the scores.
    """
    sign = -1.0 if lower_better else 1.0
    x = sign * np.array([*scores.values()], float)
    better, equal = (x[None] > x[:, None]).sum(1), (x[None] == x[:, None]).sum(1)
    return dict(zip(scores, (1 + better + (equal - 1) / 2).tolist(), strict=True))


def average_ranks(
    records: Sequence[Record], metrics_by_task: Mapping[str, Sequence[str]]
) -> dict[str, Rank]:
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
    alone = {f"unimodal_{name}" for name in modalities(records)}
    names = [name for name in methods(records) if name not in alone]
    columns = {
        (task, metric): _rank_column(of_task(records, task), names, metric)
        for task, chosen in metrics_by_task.items()
        for metric in chosen
    }
    found = {name: _combine(columns, name) for name in names}
    return dict(sorted(found.items(), key=lambda item: (-item[1].tasks, item[1].average)))


def _rank_column(records: Sequence[Record], names: Sequence[str], metric: str) -> dict[str, float]:
    values = {n: by_seed(of_method(records, n), lambda r: r.test.get(metric)) for n in names}
    means = {name: summarize(found.values()).mean for name, found in values.items() if found}
    return rank(means, lower_better=lower_is_better(metric))


def _combine(columns: Mapping[tuple[str, str], Mapping[str, float]], name: str) -> Rank:
    own = {key: ranks[name] for key, ranks in columns.items() if name in ranks}
    tasks = list(dict.fromkeys(task for task, _ in columns))
    kept = [[own[key] for key in columns if key[0] == t] for t in tasks if _has(own, columns, t)]
    average = fmean(fmean(ranks) for ranks in kept) if kept else math.nan
    return Rank(own, average, len(kept), len(kept) == len(tasks))


def _has(own: Iterable[tuple[str, str]], columns: Iterable[tuple[str, str]], task: str) -> bool:
    return {key for key in columns if key[0] == task} <= set(own)
