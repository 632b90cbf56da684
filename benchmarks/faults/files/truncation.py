"""The files of a case cut short after each percent of their bytes."""

import time
from collections import Counter
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.faults.files.readers import (
    PEERS,
    Reader,
    contents,
    error_of,
    is_named,
    readers,
    simulated_case,
)
from cggm_seg.simulation.template import FULL_SHAPE

_LONGEST = 1.0  # seconds


def measure(quick: bool) -> dict[str, Any]:
    shape, step = ((60, 60, 39), 5) if quick else (FULL_SHAPE, 1)
    percents = range(0, 100, step)
    with TemporaryDirectory() as name:
        files = contents(simulated_case(Path(name) / "cohort", shape))
        found = {
            reader: _cut(files, percents, Path(name), read)
            for reader, read in readers(quick=quick).items()
        }
    ours = found["ours"]
    return {
        "bar": f"{len(percents)} of {len(percents)} refused by case and file, each in less than "
        f"{_LONGEST:g} s",
        "holds": ours["case and file named"] == len(percents) and ours["longest, s"] < _LONGEST,
        "figures": {"shape": str(shape), "cuts": len(percents), **found},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    cuts = figures["cuts"]
    named = [f"{name} {figures[name]['file named']}" for name in figures if name in PEERS]
    return (
        "files cut short",
        f"{figures['ours']['case and file named']} of {cuts} refused by case and file",
        f"file named: {', '.join(named)}",
    )


def _cut(files: dict[str, bytes], percents: range, folder: Path, read: Reader) -> dict[str, Any]:
    errors: Counter[str] = Counter()
    named, in_message, seconds = 0, 0, []
    for percent, (name, data) in zip(percents, cycle(files.items()), strict=False):
        file = folder / name
        file.write_bytes(data[: len(data) * percent // 100])
        start = time.perf_counter()
        error = error_of(read, file)
        seconds.append(time.perf_counter() - start)
        errors["no error" if error is None else type(error).__name__] += 1
        named += is_named(error, file)
        in_message += name in str(error)
    return {
        "case and file named": named,
        "file named": in_message,
        "errors": dict(errors),
        "longest, s": max(seconds),
    }
