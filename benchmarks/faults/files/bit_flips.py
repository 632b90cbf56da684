"""Single bits flipped in the five files of a case, at random.

A flip changes the content if the file then decompresses to other bytes, or does not decompress,
checksums aside. Others, as of the checksum or of the time in the gzip header, need no report.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.files.readers import (
    PEERS,
    contents,
    error_of,
    is_named,
    ours,
    readers,
    simulated_case,
)

_GZIP_HEADER, _GZIP_TRAILER = 10, 8  # bytes; the files carry no name


def measure(quick: bool) -> dict[str, Any]:
    shape, count = ((60, 60, 39), 40) if quick else ((120, 120, 78), 1000)
    with TemporaryDirectory() as name:
        files = contents(simulated_case(Path(name) / "cohort", shape))
        outcomes = _flip(files, count, Path(name), quick)
    found = outcomes["ours"]
    return {
        "bar": "every flip that changes the content reported by case and file, and no alarm on as "
        "many clean reads",
        "holds": not (found["missed"] or found["alarms"] or found["unnamed"])
        and found["reported"] > 0,
        "figures": {
            "shape": str(shape),
            "flips": count,
            "clean reads": count,
            "alarms": found["alarms"],
            "content-changing flips": found["reported"] + found["missed"],
            **{reader: _figures(counts) for reader, counts in outcomes.items()},
        },
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours, flips = figures["ours"], figures["content-changing flips"]
    told = f"{ours['reported']} of {flips} reported, {figures['alarms']} alarms in "
    peers = [f"{name} {figures[name]['reported']}" for name in PEERS if name in figures]
    return (
        "bit flips that change a case's content",
        f"{told}{figures['clean reads']:,} clean reads",
        ", ".join(peers),
    )


def _figures(counts: Counter[str]) -> dict[str, int]:
    kinds = ("reported", "missed", "refused without a change of content", "harmless")
    return {kind: counts[kind] for kind in kinds}


def _flip(
    files: dict[str, bytes], count: int, folder: Path, quick: bool
) -> dict[str, Counter[str]]:
    rng = np.random.default_rng(0)
    reads = readers(quick=quick)
    outcomes: dict[str, Counter[str]] = {reader: Counter() for reader in reads}
    for name in islice(cycle(files), count):
        data, file = files[name], folder / name
        file.write_bytes(data)
        outcomes["ours"]["alarms"] += error_of(ours, file) is not None
        position = int(rng.integers(8 * len(data)))
        damaged = flipped(data, position)
        file.write_bytes(damaged)
        changed = _changes(data, damaged, position // 8)
        for reader, read in reads.items():
            error = error_of(read, file)
            outcomes[reader][_outcome(changed, error)] += 1
            outcomes[reader]["unnamed"] += error is not None and not is_named(error, file)
    return outcomes


def _outcome(changed: bool, error: Exception | None) -> str:
    if changed:
        return "missed" if error is None else "reported"
    return "harmless" if error is None else "refused without a change of content"


def flipped(data: bytes, position: int) -> bytes:
    """The same bytes with one bit flipped."""
    damaged = bytearray(data)
    damaged[position // 8] ^= 1 << position % 8
    return bytes(damaged)


def _changes(data: bytes, damaged: bytes, byte: int) -> bool:
    if byte >= len(data) - _GZIP_TRAILER:
        return False
    with suppress(zlib.error, OSError, EOFError):
        if byte < _GZIP_HEADER:
            return gzip.decompress(damaged) != gzip.decompress(data)
        return _inflated(damaged) != _inflated(data)
    return True


def _inflated(data: bytes) -> bytes:
    return zlib.decompress(data[_GZIP_HEADER:-_GZIP_TRAILER], wbits=-zlib.MAX_WBITS)
