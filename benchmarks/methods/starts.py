"""What it costs to start a training: a comparison's server of imports beside other ways.

    python -m benchmarks.methods.starts [--trainings 8] [--repeats 3] [--json FILE]

The same tiny trainings, one after another, each by the server that a comparison forks from, as a
fresh process, by a worker of joblib's loky and as a job of submitit's local executor. Processor
seconds are those of all processes of a way, its own imports among them. Loky's worker is used
again: a training meets what the one before it left, and cannot be ended alone.
"""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import machine

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "pipelines" / "mosi_train.py"
CONFIG = """
max_epochs: 1
subsets: false
curves: false
report: false
device: cpu
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
"""
Lines = Sequence[Sequence[str]]


def by_server(lines: Lines, folder: Path) -> None:
    """As `compare.py` starts them here."""
    from cggm.comparison.processes import Script, share_imports

    share_imports(["cggm_cls.training.experiments"], threads=1)
    for line in lines:
        error = folder / "error.json"
        script = Script(SCRIPT, line, folder / "log", inherited=None, error_file=error)
        while (code := script.poll()) is None:
            time.sleep(0.05)
        assert code == 0, (folder / "log").read_text()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # waited for, it is counted


def afresh(lines: Lines, folder: Path) -> None:
    """As somebody starts them by hand."""
    for line in lines:
        with (folder / "log").open("a") as log:
            subprocess.run([sys.executable, str(SCRIPT), *line], check=True, stdout=log, stderr=log)


def by_loky(lines: Lines, folder: Path) -> None:
    """In one worker, which is used again."""
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=1, timeout=None)
    for line in lines:
        executor.submit(train, line).result()
    executor.shutdown(wait=True)


def by_submitit(lines: Lines, folder: Path) -> None:
    """As jobs of this machine."""
    import submitit

    executor = submitit.LocalExecutor(folder / "jobs")
    for line in lines:
        executor.submit(train, line).result()


WAYS: dict[str, Callable[[Lines, Path], None]] = {
    "server": by_server,
    "fresh": afresh,
    "loky": by_loky,
    "submitit": by_submitit,
}


def train(line: Sequence[str]) -> None:
    """One training within this process."""
    sys.argv = [str(SCRIPT), *line]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"ended with {ended.code}") from ended


def run_way(way: str, trainings: int, folder: Path) -> None:
    """All trainings in one way."""
    told = ("--data", str(folder / "mosi.pkl"), "--config", str(folder / "tiny.yaml"))
    outputs = [folder / f"{way}-{time.time_ns()}-{k}" for k in range(trainings)]
    WAYS[way]([("--output", str(output), *told) for output in outputs], folder)
    missing = [output for output in outputs if not (output / "results.json").exists()]
    assert not missing, missing


def processor_seconds(way: str, trainings: int, folder: Path) -> float:
    """Of a process that goes one way, and of all that it waited for; for each training."""
    command = [sys.executable, "-m", "benchmarks.methods.starts", "--way", way]
    command += ["--trainings", str(trainings), "--folder", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return taken / trainings


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--way", choices=WAYS, help="go this way in --folder, and stop")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.way:
        run_way(options.way, options.trainings, options.folder)
        return
    from cggm_cls.data.mosi import simulate_mosi

    rows: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
        (folder / "tiny.yaml").write_text(CONFIG)
        for _ in range(options.repeats):
            for way, own in rows.items():
                own.append(processor_seconds(way, options.trainings, folder))
                print(f"{way:8} {own[-1]:6.2f} s of the processor per training", flush=True)
    for way, own in rows.items():
        print(f"{way:8} {statistics.median(own):6.2f} s, median of {len(own)}")
    if options.json:
        about = {"machine": machine("torch", "joblib", "submitit"), "trainings": options.trainings}
        options.json.write_text(json.dumps({**about, "processor_seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
