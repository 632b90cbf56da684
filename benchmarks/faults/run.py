"""What a fault does to this package and to its peers, family by family, each against its bar.

    python benchmarks/faults/run.py [--quick] [--only NAME ...] [--json FILE]

The file is written after every family, and keeps what it holds of the others: an interrupted run
goes on with --only. Ends with 1 when a bar is missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from machine import machine

from cggm.runs.storage.files import write_atomically

FAMILIES = (
    "bit_flips",
    "truncation",
    "headers",
    "gzip_bombs",
    "case_contents",
    "checkpoint_flips",
    "hostile_checkpoints",
    "cache_builds",
    "kills",
    "workers",
    "storage",
    "overflow",
)
PACKAGES = ("torch", "monai", "nibabel", "safetensors", "pytorch-ignite")


def main() -> int:
    options = parse()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    held = []
    for name in options.only or FAMILIES:
        start = time.perf_counter()
        result = import_module(name).measure(options.quick)
        conditions = {"quick": options.quick, "machine": machine(*PACKAGES)}
        results[name] = result | {"seconds": time.perf_counter() - start} | conditions
        held.append(result["holds"])
        show(name, results[name])
        if options.json:
            write_atomically(options.json, (json.dumps(results, indent=2) + "\n").encode())
    return 0 if all(held) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small faults, in seconds")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="NAME", help="families")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def show(name: str, result: Mapping[str, Any]) -> None:
    verdict = "holds" if result["holds"] else "MISSED"
    print(f"\n{name}: {verdict} ({result['seconds']:.0f} s)\n    bar: {result['bar']}")
    for path, figure in figures(result["figures"]):
        print(f"    {path}: {figure}", flush=True)


def figures(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested figures, each with the names that lead to it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{path}{name}, ")
        else:
            yield f"{path}{name}", f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
