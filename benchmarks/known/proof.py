"""Guided heads against joint training and their controls, on as many fresh seeds as asked for.

    python -m benchmarks.known.proof [--seeds 24] [--first 500] [--json FILE] [--figure FILE]

Classification and regression, SGD and Adam, the scenarios of known/data.py, all seeds of a case at
once (known/engine.py). Controls take the weights
that the guided training of the same case and seed recorded: "uniform" their mean over time and
modalities, "constant" their mean over time, both without shares; "random" rows of them drawn anew,
with shares dealt out to other samples; "shuffled" has live weights and such shares. "no switch" has
shares that always count. Figures are hundredths of accuracy or of the negated absolute error; (d)
is judged without A. Intervals are Student's at 95 % for one paired difference (*); ** marks those
that are left when all that were made are corrected for by Holm's method at 5 %.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.known.answer import EPOCHS, interval
from benchmarks.known.data import SCENARIOS
from benchmarks.known.engine import GUIDED, JOINT, UNIMODAL, Engine, Setting
from benchmarks.machine import machine
from cggm.display import Interval, IntervalChart, picture_file

TASKS = ("classification", "regression")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
RIVALS = ("joint", "unimodal losses")
CONTROLS = ("uniform", "constant", "random", "shuffled")
UNSWITCHED = "no switch"
SHORT = {"classification": "class.", "regression": "regr."}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    rows = []
    for case in itertools.product(options.scenarios, options.tasks, options.optimizers):
        rows.append(measure(*case, range(options.first, options.first + options.seeds)))
        print(line(rows[-1]), flush=True)
        if options.json:  # so that an interrupted run leaves what it has
            options.json.write_text(json.dumps(record(options, rows)) + "\n")
    print(f"\n{verdict(rows)}")
    if options.figure:
        options.figure.write_bytes(picture_file([figure(rows)]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=24, help="how many")
    parser.add_argument("--first", type=int, default=500, help="the first one")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--figure", type=Path, help="where to write the picture, PNG")
    return parser.parse_args()


def measure(scenario: str, task: str, optimizer: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Scores of every training of a case, by seed, and paired differences to them."""
    start, engine = time.perf_counter(), Engine(task, scenario, optimizer, seeds)
    absent = SCENARIOS[scenario].absent
    judged = "score" if absent is None else f"without {absent}"
    scores, recorded = {}, torch.empty(0)
    settings = {"guided": GUIDED, "joint": JOINT, "unimodal losses": UNIMODAL}
    others = [*RIVALS, *CONTROLS]
    if task == "classification":
        settings[UNSWITCHED] = replace(GUIDED, switch=False)
        others.append(UNSWITCHED)
    for name in ("guided", *others):
        setting = settings[name] if name in settings else control(name, recorded)
        network, weights = engine.train(setting, EPOCHS[task])
        recorded = weights if name == "guided" else recorded
        scores[name] = engine.judge(network)
    own = scores["guided"][judged]
    gaps = {
        name: [a - b for a, b in zip(own, scores[name][judged], strict=True)] for name in others
    }
    return {
        "scenario": scenario,
        "task": task,
        "optimizer": optimizer,
        "judged": judged,
        "scores": scores,
        "weights": recorded.mean((0, 1)).tolist(),
        "differences": {name: [round(x, 4) for x in gap] for name, gap in gaps.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }


def control(name: str, recorded: torch.Tensor) -> Setting:
    """A control with the weights that were recorded, ``(S, steps, M)``."""
    means = recorded.mean(1)
    if name == "uniform":
        equal = means.mean(1, keepdim=True).expand_as(means)
        return replace(GUIDED, shares=None, factors=equal)
    if name == "constant":
        return replace(GUIDED, shares=None, factors=means)
    factors = recorded if name == "random" else None
    return replace(GUIDED, shares="shuffled", factors=factors)


def record(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "machine": machine("torch"),
        "seeds": [options.first, options.first + options.seeds - 1],
        "epochs": {task: EPOCHS[task] for task in TASKS},
        "rows": list(rows),
    }


def holm(rows: Sequence[Mapping[str, Any]], level: float = 0.05) -> set[tuple[int, str]]:
    """Row and name of the differences that are not 0 by paired t tests and Holm's method.

    Args:
        rows: See :func:`measure`; every difference in them is one comparison.
        level: Chance of a false one among all.
    """
    values = {
        (index, name): float(stats.ttest_1samp(gap, 0).pvalue)
        for index, row in enumerate(rows)
        for name, gap in row["differences"].items()
    }
    kept = set()
    for done, key in enumerate(sorted(values, key=values.__getitem__)):
        if not values[key] <= level / (len(values) - done):
            break
        kept.add(key)
    return kept


def line(row: Mapping[str, Any]) -> str:
    """One row of text."""
    found = "  ".join(f"{n} {gain(gap)}" for n, gap in row["differences"].items())
    return f"({row['scenario']}) {row['task']}, {row['optimizer']}: {found}  {row['seconds']:.0f} s"


def gain(gap: Sequence[float], *, kept: bool = False) -> str:
    """A mean difference with its interval; a star where it excludes 0, two by Holm's method."""
    mean, half = interval(list(gap))
    return f"{mean:+.2f} ± {half:.2f}{'*' * ((abs(mean) > half) + kept)}"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was expected beforehand, and what came."""
    better = [above(row["differences"]["joint"]) for row in rows]
    worse = [above([-x for x in row["differences"]["joint"]]) for row in rows]
    both = [
        all(above(row["differences"][name]) for name in ("joint", *CONTROLS))
        for row in rows
        if row["scenario"] in "acd"
    ]
    useless = [w for w, row in zip(worse, rows, strict=True) if row["scenario"] == "b"]
    return (
        f"Better than joint training in {sum(better)} of {len(rows)} cells, worse in {sum(worse)}; "
        f"better than joint training and all controls in {sum(both)} of the {len(both)} cells of "
        f"(a), (c) and (d); worse than joint training in {sum(useless)} of the {len(useless)} "
        "cells of (b)."
    )


def above(gap: Sequence[float]) -> bool:
    mean, half = interval(list(gap))
    return mean > half


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    names, kept = list(dict.fromkeys(n for row in rows for n in row["differences"])), holm(rows)
    lines = [f"| guided heads less | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for index, row in enumerate(rows):
        own = row["differences"]
        gaps = [gain(own[n], kept=(index, n) in kept) if n in own else "-" for n in names]
        lines.append(f"| {cell_name(row)} | {' | '.join(gaps)} |")
    return "\n".join(lines)


def cell_name(row: Mapping[str, Any]) -> str:
    """Scenario, task and optimizer."""
    return f"({row['scenario']}) {SHORT[row['task']]} {OPTIMIZERS[row['optimizer']]}"


def figure(rows: Sequence[Mapping[str, Any]]) -> IntervalChart:
    """Guided heads less the best of all that they are compared with, cell by cell."""
    intervals = []
    for row in rows:
        gaps = {n: gap for n, gap in row["differences"].items() if n != UNSWITCHED}
        best = min(gaps, key=lambda n: statistics.mean(gaps[n]))
        mean, half = interval(list(gaps[best]))
        kind = "better" if mean > half else "worse" if mean < -half else "no difference"
        name = f"{cell_name(row)} - {best}"
        intervals.append(Interval(name, mean, mean - half, mean + half, kind))
    return IntervalChart(
        "Guided heads less the best of joint training and all controls",
        intervals,
        "hundredths",
        "95 % intervals; right of zero: guided heads are better than everything else",
        zero=True,
    )


if __name__ == "__main__":
    main()
