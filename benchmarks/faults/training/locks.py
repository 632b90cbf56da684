"""Two trainings that are started on one folder, at once or while the other one runs.

One of them has to end as if it were alone, the other to be refused in one line. Where the file
system has no locks (ENOLCK, of the kernel, see system_calls.py) a line says so and it goes on.
"""

import errno
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.processes.child import in_child


def measure(quick: bool) -> dict[str, Any]:
    pairs = 2 if quick else 10
    figures = in_child(_measure, pairs)
    return {
        "bar": f"{pairs} of {pairs} pairs: one ends as if alone, one is refused in one line; "
        "without locks it says so and ends as ever",
        "holds": figures["one as if alone, one refused"] == pairs and figures["without locks"],
        "figures": figures,
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        "two trainings on one folder",
        f"{figures['one as if alone, one refused']} of {figures['pairs']}: one ends as if alone, "
        "one is refused in a line",
        "",
    )


def _measure(pairs: int) -> dict[str, Any]:
    from benchmarks.faults.processes.forked import ended, forked, start
    from benchmarks.faults.processes.system_calls import refuse
    from benchmarks.faults.training.small_training import SmallTraining
    from cggm.runs.cli import run
    from pipelines import mosi_train

    counts: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as name:
        training = SmallTraining(Path(name))

        def begin(place: Path) -> int:
            return run(mosi_train.main, training.beginning(place, training.data))

        def without_locks() -> int:
            refuse({"flock": errno.ENOLCK})
            return begin(Path(name) / "without-locks")

        logs = [Path(name) / f"log{k}.txt" for k in range(2)]
        for number in range(pairs):
            place = Path(name) / f"run{number}"
            processes = []
            for log in logs:
                processes.append(start(lambda place=place: begin(place), log))  # type: ignore[misc]
                time.sleep(float(rng.uniform(0, training.seconds)) * (number % 4) / 4)
            codes = [ended(pid) for pid in processes]
            said = [log.read_text() for log in logs]
            refused = [c == 2 and _is_refusal(s) for c, s in zip(codes, said, strict=True)]
            one_each = sorted(codes) == [0, 2] and any(refused)
            counts["good"] += one_each and training.equals_whole(place)
        code = forked(without_locks, logs[0])
        told = "has no locks" in logs[0].read_text()
        alone = training.equals_whole(Path(name) / "without-locks")
    return {
        "pairs": pairs,
        "one as if alone, one refused": counts["good"],
        "without locks": code == 0 and told and alone,
    }


def _is_refusal(said: str) -> bool:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    reasons = ("still writes there", "began there meanwhile", "but it holds files")
    return len(lines) == 1 and any(r in lines[0] for r in reasons) and "Traceback" not in said
