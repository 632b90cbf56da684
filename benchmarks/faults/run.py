"""What a fault does to this package and to its peers, family by family, each against its bar.

    python -m benchmarks.faults.run [--quick] [--only NAME ...] [--json FILE] [--page FILE]

The file is written after every family, and keeps what it holds of the others: an interrupted run
goes on with --only. Ends with 1 when a bar is missed. With --page, the table between the marks of
a Markdown page is that of the file's figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from cggm.runs.storage.files import write_atomically

FAMILIES = {
    "bit_flips": "files.bit_flips",
    "truncation": "files.truncation",
    "headers": "files.headers",
    "gzip_bombs": "files.gzip_bombs",
    "hostile_texts": "files.texts",
    "case_contents": "cases.contents",
    "orientation": "cases.orientation",
    "background": "cases.background",
    "naming": "cases.naming",
    "checkpoint_flips": "checkpoints.flips",
    "hostile_checkpoints": "checkpoints.hostile",
    "cache_builds": "caches.builds",
    "identity": "caches.identity",
    "locks": "training.locks",
    "loader_ends": "training.loader_ends",
    "signals": "training.signals",
    "kills": "training.kills",
    "workers": "training.workers",
    "storage": "disks.storage",
    "overflow": "training.overflow",
}
PACKAGES = ("torch", "monai", "nibabel", "nnunetv2", "safetensors", "pytorch-ignite")
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->"


def main() -> int:
    options = parse()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    held = []
    for name in FAMILIES if options.only is None else options.only:
        start = time.perf_counter()
        result = family(name).measure(options.quick)
        conditions = {"quick": options.quick, "machine": machine(*PACKAGES)}
        results[name] = result | {"seconds": time.perf_counter() - start} | conditions
        held.append(result["holds"])
        show(name, results[name])
        if options.json:
            write_atomically(options.json, (json.dumps(results, indent=2) + "\n").encode())
    if options.page:
        write_atomically(options.page, with_table(options.page.read_text(), results).encode())
    return 0 if all(held) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small faults, in seconds")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, metavar="NAME", help="families")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, help="whose table to write from the figures")
    return parser.parse_args()


def family(name: str) -> Any:  # noqa: ANN401
    """The module of a family: ``measure(quick)``, and ``row(figures)`` of the table."""
    return import_module(f"benchmarks.faults.{FAMILIES[name]}")


def show(name: str, result: Mapping[str, Any]) -> None:
    verdict = "holds" if result["holds"] else "MISSED"
    print(f"\n{name}: {verdict} ({result['seconds']:.0f} s)\n    bar: {result['bar']}")
    for path, figure in leaves(result["figures"]):
        print(f"    {path}: {figure}", flush=True)


def leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested figures, each with the names that lead to it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}, ")
        else:
            yield f"{path}{name}", f"{value:.4g}" if isinstance(value, float) else value


def table(results: Mapping[str, Any]) -> str:
    """A row for each family: the fault, what ours does, and what peers do in the same run."""
    rows = [family(name).row(results[name]["figures"]) for name in FAMILIES if name in results]
    lines = [f"| {' | '.join(cells)} |" for cells in [("fault", "ours", "peers"), *rows]]
    return "\n".join([lines[0], "|---|---|---|", *lines[1:]])


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """A page whose table, between its marks, is that of the figures."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table(results)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    sys.exit(main())
