"""A mutation run: the core with one small fault after the other, and whether its tests notice.

    make mutants                                  200 faults, drawn by seed
    python -m tests.mutants --only cggm/scores.py --count 40

A fault is put into a copy of the tree, so that tests which start processes see it as well. What is
slow to import is imported once; each fault gets a fork of that. A fault counts as noticed if a test
fails that passes without it. ``tests/mutants.yaml`` has the tests of each module, and the reasons
of faults that no test can notice.
"""

import argparse
import ast
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tests.mutations import ROOT, Fault, listed, sample

NOTES = yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text())
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
SLOW_TO_IMPORT = (
    *("torch", "torch._dynamo", "ignite.engine", "monai.engines", "monai.networks", "monai.losses"),
    *("segmentation_models_pytorch", "scipy.ndimage", "sklearn.metrics", "nibabel", "hypothesis"),
    *("jsonargparse", "pytest"),
)
OPTIONS = ("-x", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", "-rfE")
Row = dict[str, Any]
Tests = list[tuple[list[str], list[str]]]  # options and files of each call of pytest


def calls_of_core() -> dict[str, Tests]:
    """Every module of the core with the tests that have to notice its faults, quickest first."""
    found: dict[str, Tests] = {}
    for where, tests in NOTES["tests"].items():
        for file in sorted(ROOT.glob(where)):
            named = [test.format(stem=file.stem) for test in tests]
            nodes = ast.parse(file.read_text()).body
            classes = " or ".join(node.name for node in nodes if isinstance(node, ast.ClassDef))
            calls = [
                ([], [t for t in named if t[0] != "~" and (ROOT / t).exists()]),
                (["-k", classes], [t[1:] for t in named if t[0] == "~" and classes]),
            ]
            found.setdefault(str(file.relative_to(ROOT)), calls)
    return found


class Tree:
    """The copy of the tree that a worker puts its faults into."""

    def __init__(self, folder: str, limit: float) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.limit, self.edits = limit, 0
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
        for name in listed.decode().splitlines():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.folder / name)

    def write(self, name: str, text: str) -> None:
        """Compiled files are told by second and size, which two faults of a file may share."""
        self.edits += 1
        (self.folder / name).write_text(text)
        os.utime(self.folder / name, (1e9 + self.edits, 1e9 + self.edits))

    def failure(self, tests: Tests) -> str:
        """The first test that fails, ``time`` where the limit passed, or nothing."""
        said = self.folder.with_suffix(".log")
        child = os.fork()
        if child == 0:
            self._test(tests, said)
        ends = time.monotonic() + 10 * self.limit  # for one that waits; others by their own time
        while time.monotonic() < ends and _computed(child) < self.limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return _told(said, code) if code else ""
            time.sleep(0.1)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "time"

    def _test(self, tests: Tests, said: Path) -> NoReturn:
        """Runs tests in this process, which ends."""
        os.setsid()
        with said.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(self.folder)
        os.environ["PYTHONPATH"] = str(self.folder)
        sys.path[:] = [str(self.folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
        for name in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
            del sys.modules[name]
        pytest = importlib.import_module("pytest")
        for options, files in filter(itemgetter(1), tests):
            code = pytest.main([*OPTIONS, *options, *dict.fromkeys(files)])
            if code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
                os._exit(int(code))
        os._exit(0)


def _computed(process: int) -> float:
    """Seconds of processor time of a process and of those that it waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _told(said: Path, code: int) -> str:
    lines = said.read_text(errors="replace").splitlines()
    # of a test, not of a log that is shown with it
    failed = [line for line in lines if line.startswith(("FAILED tests/", "ERROR tests/"))]
    return failed[0].split(" - ")[0].partition(" ")[2] if failed else f"exit {code}"


def start(folder: str, limit: float) -> None:
    """Prepare a worker."""
    global _tree
    _tree = Tree(folder, limit)
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)


def noticed(fault: Fault, tests: Tests) -> Row:
    """What the tests say to a fault."""
    source = (ROOT / fault.file).read_text()
    _tree.write(fault.file, fault.apply(source))
    try:
        failed = _tree.failure(tests)
    finally:
        _tree.write(fault.file, source)
    where = {"file": fault.file, "line": fault.line, "kind": fault.kind}
    return {**where, "change": fault.change(), "noticed_by": failed}


def passes(test: str) -> bool:
    """Whether a test passes without a fault."""
    return not _tree.failure([([], [test])])


def tried(faults: list[Fault], tests: dict[str, Tests], workers: Executor) -> Iterator[Row]:
    """Every fault with the test that noticed it, or with none, as they are done."""
    tasks = [workers.submit(noticed, fault, tests[fault.file]) for fault in faults]
    for number, task in enumerate(as_completed(tasks), 1):
        print(f"{number}/{len(faults)}", *task.result().values(), sep=" | ", flush=True)
        yield task.result()


def without_fault(rows: Iterable[Row], workers: Executor) -> Iterator[Row]:
    """The rows again, where a test that noticed something has to pass without a fault."""
    killers = sorted({row["noticed_by"] for row in rows} - {"", "time"})
    fine = dict(zip(killers, workers.map(passes, killers), strict=True))
    for row in rows:
        if not fine.get(row["noticed_by"], True):
            print(f"fails without a fault, too: {row['noticed_by']}")
            yield {**row, "noticed_by": ""}


def summary(rows: list[Row]) -> dict[str, object]:
    """How many were noticed, of those that can be."""
    left = [row for row in rows if row["noticed_by"] in ("", "time")]
    for row in left:
        row["cannot_be"] = NOTES["cannot_be_noticed"].get(row["file"], {}).get(row["change"])
    cannot = [row for row in left if row["cannot_be"]]
    noticed = len(rows) - len(left)
    return {
        "tried": len(rows),
        "noticed": noticed,
        "out_of_time": sum(row["noticed_by"] == "time" for row in rows),  # and not noticed
        "cannot_be": len(cannot),
        "share": round(noticed / max(1, len(rows) - len(cannot)), 3),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "survivors": left,
        "rows": [row for row in rows if row["noticed_by"] not in ("", "time")],
    }


def write(file: Path, seed: int, rows: Iterable[Row]) -> dict[str, object]:
    """The results so far."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    ordered = sorted(rows, key=itemgetter("file", "line", "change"))
    found = {"commit": head.strip(), "seed": seed, **summary(ordered)}
    file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    """Try a sample of faults and write what noticed them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="faults to try (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--only", default="", help="modules whose path holds this")
    parser.add_argument("--keep", choices=("noticed", "all"), help="results that are there")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--limit", type=float, default=600, help="processor seconds of a fault (600)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    given = parser.parse_args()
    tests = {file: calls for file, calls in calls_of_core().items() if given.only in file}
    faults = [fault for name in tests for fault in listed(name, NOTES["listed"].get(name, []))]
    faults += sample(tests, given.count, given.seed)
    rows: dict[tuple[str, str], Row] = {}
    if given.keep and given.json.exists():
        known = json.loads(given.json.read_text())
        kept = known["rows"] + (known["survivors"] if given.keep == "all" else [])
        rows = {(row["file"], row["change"]): row for row in kept}
    left = [fault for fault in faults if fault.key() not in rows]
    with tempfile.TemporaryDirectory() as folder:
        ready = {"initializer": start, "initargs": (folder, given.limit)}
        workers = ProcessPoolExecutor(given.jobs, get_context("fork"), **ready)
        for row in tried(left, tests, workers):
            rows[row["file"], row["change"]] = row
            write(given.json, given.seed, rows.values())
        for row in without_fault([*rows.values()], workers):
            rows[row["file"], row["change"]] = row
        workers.shutdown()
    found = write(given.json, given.seed, rows.values())
    print({key: value for key, value in found.items() if key not in ("survivors", "rows")})


if __name__ == "__main__":
    main()
