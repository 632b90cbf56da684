"""Time and memory of a training step of every method against the joint step of the same network.

    python -m benchmarks.methods.cost [--repeats 15] [--only NAME ...] [--json FILE]

Every configuration of ``configs/methods`` makes steps on a network for sequences and on one for
segmentation; late-fusion methods are compared with the joint step of a late-fusion network. Sides
take turns within one process on the same weights and optimizer. In the same turns the parts that
methods are made of are measured, such as one more pass through the fusion. What a method should
cost is the joint step and its parts: ``explained`` is that sum, ``ratio`` what was measured over
it. Seconds are processor time, in which other processes' turns do not count. The two networks are
measured at the same time, by one thread each.

Trainings that precede or interrupt an epoch, of teachers and of trial copies, are no part of a step
and are given in training epochs, for trainings of two epochs.

Peak memory (VmHWM) is that of a process forked for each side, above what it held before the network
was built: unlike a count of tensors it holds what kernels allocate. Tensors are mapped alone there,
so that memory a heap keeps is not counted.
"""

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.methods.counts import Counts, counts
from benchmarks.methods.memory import keep_memory, peaks
from benchmarks.methods.parts import Parts, seconds_of
from benchmarks.methods.tasks import (
    EPOCHS,
    SLICE_SIZE,
    STEPS,
    TASKS,
    TRAINED_FIRST,
    Task,
    fusion_of,
    names,
)
from cggm import Balancer
from cggm.errors import UserError

LIMIT = 1.5

Seconds = dict[str, list[float]]


class Sides:
    """All methods on the networks of one task.

    Args:
        name: Of the task.
        methods: Names of configurations.

    Attributes:
        tasks: Network by what it fuses.
        balancers: Method by name.
        trials: Seconds of the trainings that some methods make before the first epoch.
        refused: Why a method cannot serve, by name.
    """

    def __init__(self, name: str, methods: list[str]) -> None:
        fusions = ["features", *sorted({fusion_of(m) for m in methods} - {"features"})]
        self.tasks = {fusion: TASKS[name](fusion) for fusion in fusions}
        self.balancers: dict[str, Balancer] = {}
        self.trials: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        for method in methods:
            try:
                self._prepare(method)
            except (UserError, ValueError) as error:
                self.refused[method] = str(error).splitlines()[0]

    def of(self, method: str) -> Task:
        """The task whose network a method trains."""
        return self.tasks[fusion_of(method)]

    def step(self, method: str) -> float:
        """Seconds of a step of a method."""
        return _timed_step(self.of(method), self.balancers[method])

    def _prepare(self, method: str) -> None:
        task = self.of(method)
        balancer = task.balancer(method)
        epoch = EPOCHS.get(method, 1)
        with task.bound(balancer):
            seconds = seconds_of(lambda: balancer.start_epoch(epoch))
            task.step(balancer)
        if type(balancer).__name__ in TRAINED_FIRST:
            self.trials[method] = seconds
        self.balancers[method] = balancer


def measure(sides: Sides, repeats: int) -> Seconds:
    """Seconds of methods, of parts and of the joint step of each network, by turn."""
    late = [task for fusion, task in sides.tasks.items() if fusion != "features"]
    parts = Parts(sides.tasks["features"], (late or [sides.tasks["features"]])[0])
    joint = {f: Balancer(task.parts["task_loss"]()) for f, task in sides.tasks.items()}
    seconds: Seconds = {}
    for _ in range(repeats + 1):
        turn = {f"joint, {f}": _timed_step(sides.tasks[f], b) for f, b in joint.items()}
        turn |= {method: sides.step(method) for method in sides.balancers}
        for name, taken in (turn | parts.measure()).items():
            seconds.setdefault(name, []).append(taken)
    return {name: taken[1:] for name, taken in seconds.items()}


def _timed_step(task: Task, balancer: Balancer) -> float:
    with task.bound(balancer):
        return seconds_of(lambda: task.step(balancer))


def row(method: str, fusion: str, medians: dict[str, float], extra: Counts) -> dict[str, Any]:
    """Figures of one method from medians of all."""
    joint = medians[f"joint, {fusion}"]
    explained = joint + sum(count * medians[part] for part, count in extra.items())
    return {
        "joint_of": fusion,
        "seconds": medians[method],
        "time_ratio": medians[method] / joint,
        "parts": extra,
        "explained_seconds": explained,
        "ratio": medians[method] / explained,
    }


def report(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one task."""
    memory = peaks(name, options.only)  # first, before this process has computed anything
    torch.set_num_threads(1)
    keep_memory()
    sides = Sides(name, options.only)
    extra = counts(len(sides.tasks["features"].parts["heads"]()))
    seconds = measure(sides, options.repeats)
    medians = {side: statistics.median(taken) for side, taken in seconds.items()}
    rows = {}
    for method in sides.balancers:
        fusion = fusion_of(method)
        rows[method] = row(method, fusion, medians, extra[method])
        rows[method]["peak_mb"] = memory[method]
        rows[method]["memory_ratio"] = memory[method] / memory[f"joint, {fusion}"]
    joint = medians["joint, features"]
    return {
        "rows": rows,
        "others": {side: taken for side, taken in medians.items() if side not in rows},
        "refused": sides.refused,
        "trials_in_epochs": {side: taken / joint for side, taken in sides.trials.items()},
        "above_limit": [method for method, row in rows.items() if row["ratio"] > LIMIT],
    }


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of one task."""
    print(f"\n{name:18} {'s':>8} {'x joint':>8} {'explained':>9} {'ratio':>6} {'MB':>6} {'x':>6}")
    for method, row in figures["rows"].items():
        print(
            f"{method:18} {row['seconds']:8.4f} {row['time_ratio']:8.3f} "
            f"{row['explained_seconds']:9.4f} {row['ratio']:6.2f} {row['peak_mb']:6.0f} "
            f"{row['memory_ratio']:6.2f}{' above' if row['ratio'] > LIMIT else ''}"
        )
    for side, taken in figures["others"].items():
        print(f"  {side:18} {taken:8.4f} s")
    for method, why in figures["refused"].items():
        print(f"  refused: {method}: {why}")
    for method, epochs in figures["trials_in_epochs"].items():
        print(f"  trainings of {method} beside its steps: {epochs:.1f} training epochs")


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=names(), default=names())
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    unknown = set(options.only) - set(counts(1))
    if unknown:
        parser.error(f"methods/counts.py does not say what {sorted(unknown)} take.")
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(options.task), fork) as pool:
        reports = pool.map(partial(report, options=options), options.task)
        figures = dict(zip(options.task, reports, strict=True))
    for name in options.task:
        show(name, figures[name])
    if options.json:
        settings = {
            "repeats": options.repeats,
            "steps": STEPS,
            "slice_size": SLICE_SIZE,
            "threads": 1,
        }
        record = {
            "benchmark": "methods",
            "settings": settings,
            "machine": machine("torch"),
            "limit": LIMIT,
            "tasks": figures,
        }
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
