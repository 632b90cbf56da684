"""Seconds to read a pickle of CMU-MOSI: load_arrays, which runs nothing, against pickle.load.

The file has the shapes of the unaligned MulT layout and the sentences of MMSA's, 236 MB of random
content, and is read from the page cache. Every figure is the median of rounds that run both, one
after the other.

    python -m benchmarks.data.pickles [--json FILE] [--repeats 5]
"""

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from cggm_cls.data.pickles.load import load_arrays

SPLITS = {"train": 1284, "valid": 229, "test": 686}
SHAPES = {"text": (50, 300), "audio": (375, 5), "vision": (500, 20)}
PROTOCOLS = (2, 4, 5)
TARGET = 1.5


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_measure(Path(folder), protocol, options.repeats) for protocol in PROTOCOLS]
    print(f"{'protocol':<12}{'MB':>8}{'pickle.load, s':>16}{'load_arrays, s':>16}{'ratio':>8}")
    for row in rows:
        verdict = "" if row["reached"] else "  missed"
        print(
            f"{row['protocol']:<12}{row['file_mb']:>8.0f}{row['pickle_s']:>16.3f}"
            f"{row['load_arrays_s']:>16.3f}{row['ratio']:>8.2f}{verdict}"
        )
    if options.json:
        result = {"machine": machine("numpy"), "repeats": options.repeats, "protocols": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds to read a pickle of 236 MB.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    return parser.parse_args()


def _measure(folder: Path, protocol: int, repeats: int) -> dict[str, Any]:
    file = folder / "mosi_data_noalign.pkl"
    file.write_bytes(pickle.dumps(_content(), protocol))
    _check_same(_plain_load(file), load_arrays(file))
    rounds = [[_seconds(load, file) for load in (_plain_load, load_arrays)] for _ in range(repeats)]
    plain, ours = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return {
        "protocol": protocol,
        "file_mb": file.stat().st_size / 1e6,
        "pickle_s": plain,
        "load_arrays_s": ours,
        "ratio": ours / plain,
        "target": f"<= {TARGET}",
        "reached": ours / plain <= TARGET,
        "rounds": rounds,
    }


def _content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for split, count in SPLITS.items():
        arrays = {
            name: rng.standard_normal((count, *shape), np.float32) for name, shape in SHAPES.items()
        }
        labels = rng.uniform(-3, 3, (count, 1, 1)).astype(np.float32)
        ids = np.array([[f"{split}{number:07d}", "0.00", "1.25"] for number in range(count)], "S")
        sentences = [
            f"a sentence of eleven words is what the speaker {n} says" for n in range(count)
        ]
        content[split] = {**arrays, "labels": labels, "id": ids, "raw_text": sentences}
    return content


def _check_same(plain: dict[str, Any], ours: dict[str, Any]) -> None:
    """A ratio of speeds counts only if both read the same."""
    for split, arrays in plain.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(ours[split][name], array)


def _plain_load(file: Path) -> object:
    with file.open("rb") as stream:
        return pickle.load(stream)


def _seconds(load: Callable[[Path], object], file: Path) -> float:
    start = time.perf_counter()
    content = load(file)
    seconds = time.perf_counter() - start
    del content
    return seconds


if __name__ == "__main__":
    main()
