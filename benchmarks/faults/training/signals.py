"""Signals at random instants of a training: it is saved, says where, and goes on when resumed.

Before the first step and in the report nothing is to be saved; what holds there is that the next
command ends as if nothing had happened.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.processes.child import in_child

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def measure(quick: bool) -> dict[str, Any]:
    rounds = 1 if quick else 5
    figures = in_child(_measure, rounds)
    return {
        "bar": "in a training: exit code 128 and the number, one line, no step lost; always: the "
        "next command ends with the bytes of the undisturbed run",
        "holds": all(
            found["saved and said"] == found["in the training"]
            and found["identical"] == found["signals"]
            for found in figures.values()
        )
        and sum(found["in the training"] for found in figures.values()) > 0,
        "figures": figures,
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    names = ("saved and said", "in the training", "identical", "signals")
    saved, within, identical, count = (
        sum(found[name] for found in figures.values()) for name in names
    )
    return (
        f"signals ({', '.join(figures)})",
        f"{saved} of {within} in a training saved at once, {identical} of {count} resume to the "
        "same bytes",
        "",
    )


def _measure(rounds: int) -> dict[str, Any]:
    from benchmarks.faults.training.small_training import SmallTraining

    with TemporaryDirectory() as name:
        training = SmallTraining(Path(name))
        return {s.name: _send(training, s, rounds) for s in _SIGNALS}


def _send(training: Any, number: signal.Signals, rounds: int) -> dict[str, int]:  # noqa: ANN401
    from benchmarks.faults.processes.forked import ended, forked, start
    from benchmarks.faults.training.small_training import saved_steps

    rng = np.random.default_rng(number.value)
    counts: Counter[str] = Counter()
    for k in range(rounds):
        run = training.folder / f"{number.name}-{k}"
        pid = start(lambda run=run: training.train(run), training.log)  # type: ignore[misc]
        while not (run / "config.yaml").exists():
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.8 * training.seconds)))
        os.kill(pid, number)
        code, said = ended(pid), training.log.read_text()
        if code == 0:
            continue  # it had ended
        counts["signals"] += 1
        within = f"--resume {run}" in said
        counts["in the training"] += within
        good = code == 128 + number and "Traceback" not in said and saved_steps(run) > 0
        counts["saved and said"] += within and good
        resumed = forked(lambda run=run: training.train(run), training.log)  # type: ignore[misc]
        counts["identical"] += resumed == 0 and training.equals_whole(run)
    names = ("signals", "in the training", "saved and said", "identical")
    return {name: counts[name] for name in names}
