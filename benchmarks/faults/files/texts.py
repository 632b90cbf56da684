"""YAML and JSON that are made to exhaust whoever reads them, each in bounds of time and memory."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.faults.processes.child import extra_memory, in_child, limit_memory
from cggm.errors import UserError
from cggm.runs.storage.reading import read_json, read_yaml

_MOST_SECONDS, _MOST_MEMORY = 5.0, 64e6
_LIMIT = 4 << 30
_ALIASES = "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n"
    for i in range(9)
)
_TEXTS: dict[str, Callable[[], str]] = {
    "alias bomb.yaml": lambda: "a: &a [x,x,x,x,x,x,x,x,x]\n" + _ALIASES,
    "nested.yaml": lambda: "a: " + "[" * 3000,
    "a value that is itself.yaml": lambda: "a: &a [*a]",
    "a tag that calls.yaml": lambda: "a: !!python/object/apply:os.getcwd []",
    "large.yaml": lambda: "a: " + "x" * (1 << 26),
    "nested.json": lambda: "[" * 100_000,
    "nested object.json": lambda: '{"a":' * 100_000,
    "number of a million digits.json": lambda: '{"a": ' + "9" * 1_000_000 + "}",
    "large.json": lambda: " ",
    "not text.json": lambda: '{"a": "\udcff"}',
}


def measure(quick: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        files = [Path(name) / what for what in _TEXTS if not (quick and "large" in what)]
        for file in files:
            file.write_bytes(_TEXTS[file.name]().encode("utf-8", "surrogateescape"))
            if file.name == "large.json":
                os.truncate(file, 1 << 30)  # which takes no room
        ours = in_child(_read_all, "ours", files)
        peers = in_child(_read_all, "PyYAML and json", files)
    return {
        "bar": f"each refused in one line that names the file, within {_MOST_SECONDS:g} s and "
        f"{_MOST_MEMORY / 1e6:.0f} MB",
        "holds": all(
            found["outcome"] == "UserError"
            and found["named"]
            and found["seconds"] < _MOST_SECONDS
            and found["extra memory, MB"] * 1e6 < _MOST_MEMORY
            for found in ours.values()
        ),
        "figures": {"texts": len(files), "ours": ours, "PyYAML and json": peers},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours, peers = figures["ours"].values(), figures["PyYAML and json"].values()
    refused = sum(found["outcome"] == "UserError" for found in ours)
    crashed = sum(found["outcome"] in ("RecursionError", "MemoryError") for found in peers)
    loaded = sum(found["outcome"] == "loaded" for found in peers)
    return (
        "hostile YAML and JSON",
        f"{refused} of {figures['texts']} refused in one line, within "
        f"{max(found['seconds'] for found in ours):.1f} s",
        f"PyYAML (safe) and json load {loaded}, {crashed} end in RecursionError or MemoryError",
    )


def _read_all(reader: str, files: list[Path]) -> dict[str, dict[str, Any]]:
    limit_memory(_LIMIT)
    read = _ours if reader == "ours" else _peer
    return {file.name: _read(read, file) for file in files}


def _read(read: Callable[[Path], object], file: Path) -> dict[str, Any]:
    start = time.perf_counter()
    error, extra = extra_memory(lambda: _error(read, file))
    name = "UserError" if isinstance(error, UserError) else type(error).__name__
    return {
        "outcome": "loaded" if error is None else name,
        "named": file.name in str(error) and "\n" not in str(error),
        "extra memory, MB": extra / 1e6,
        "seconds": time.perf_counter() - start,
    }


def _error(read: Callable[[Path], object], file: Path) -> Exception | None:
    try:
        read(file)
    except Exception as error:
        return error
    return None


def _ours(file: Path) -> object:
    return read_yaml(file) if file.suffix == ".yaml" else read_json(file)


def _peer(file: Path) -> object:
    text = file.read_text()
    return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
