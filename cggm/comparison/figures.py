"""Charts of a comparison: differences to joint training, ranks over tasks, sweeps of settings."""

import math
from collections.abc import Mapping, Sequence

from cggm.comparison.plan import SWEEP, SWEPT_LAM, SWEPT_RHO
from cggm.comparison.records import FinishedRun, of_task
from cggm.comparison.statistics import Difference, MethodRank, compare
from cggm.comparison.tables import simulated_suffix
from cggm.display import Interval, IntervalChart, interval_limits
from cggm.reports import Task
from cggm.runs import find_metric

_SWEPT = {
    "rho": {rho: f"cggm:rho={rho}" for rho in SWEPT_RHO},
    "lambda": {0.1: "cggm", **{lam: f"cggm:lam={lam}" for lam in SWEPT_LAM}},
}
_SETTINGS = {"rho": "rho, strength of the magnitude", "lambda": "lambda, weight of the direction"}
_SEEDS = "bars: 95 % intervals over seeds"


def difference_chart(
    records: Sequence[FinishedRun], task: Task, *, reference: str = "joint"
) -> IntervalChart:
    """Difference of each method to joint training with its interval, the best one on top.

    Methods on one modality alone are far off and would stretch it; they are left out.

    Args:
        records: Of any tasks and methods.
        task: Which one; its first metric is compared.
        reference: What the others are compared with.
    """
    runs, metric = of_task(records, task.name), find_metric(task.metrics[0])
    alone = {f"unimodal_{name}" for name in task.modalities}
    compared = compare(runs, metric.name, reference=reference)
    found = {name: d for name, d in compared.items() if d.n and name not in alone}
    ordered = sorted(found.items(), key=lambda item: -metric.score(item[1].mean))
    return IntervalChart(
        f"{task.name}: {metric.label} minus {reference}{simulated_suffix(runs)}",
        [_interval(name, difference) for name, difference in ordered],
        f"difference of {metric.heading} to {reference}",
        note=f"{metric.direction} is better; {_SEEDS}",
        zero=True,
    )


def rank_chart(ranks: Mapping[str, MethodRank], *, simulated: bool = False) -> IntervalChart:
    """Average rank of each method, the best one on top; hollow where a task is missing.

    Args:
        ranks: From :func:`cggm.comparison.statistics.average_ranks`.
        simulated: Whether the data were.
    """
    shown = {name: rank for name, rank in ranks.items() if rank.tasks}
    intervals = [
        Interval(
            name if rank.complete else f"{name} *",
            rank.average,
            min(rank.columns.values()),
            max(rank.columns.values()),
            hollow=not rank.complete,
        )
        for name, rank in shown.items()
    ]
    return IntervalChart(
        "Average rank over tasks" + (" (SIMULATED)" if simulated else ""),
        intervals,
        "rank (1 is best)",
        note="bars: from the best to the worst rank over tasks; *: not on all tasks",
    )


def sweep_charts(records: Sequence[FinishedRun], task: Task) -> list[IntervalChart]:
    """Difference to joint training against rho and against lambda: the paper's figure 5.

    Args:
        records: Of any tasks and methods.
        task: Which one; its first metric is compared.

    Returns:
        Two charts of one scale; none where no setting but the usual one was trained.
    """
    runs, metric = of_task(records, task.name), find_metric(task.metrics[0])
    found = compare(runs, metric.name)
    points = {
        setting: [
            _interval(f"{setting} {value:g}", found[method], position=value)
            for value, method in sorted(methods.items())
            if method in found
        ]
        for setting, methods in _SWEPT.items()
    }
    every = [interval for own in points.values() for interval in own]
    if not found.keys() & {*SWEEP}:
        return []
    return [
        IntervalChart(
            f"{task.name}: {setting}{simulated_suffix(runs)}",
            own,
            f"difference of {metric.heading} to joint",
            note=f"{metric.direction} is better; {_SEEDS}",
            zero=True,
            position_label=_SETTINGS[setting],
            value_range=interval_limits(every, zero=True),
        )
        for setting, own in points.items()
        if own
    ]


def _interval(name: str, difference: Difference, position: float | None = None) -> Interval:
    known = not math.isnan(difference.low)  # few seeds have no interval
    low, high = (e if known else difference.mean for e in (difference.low, difference.high))
    return Interval(name, difference.mean, low, high, difference.verdict, position=position)
