"""Processor time of small trainings by who starts them: our fork server, submitit, joblib.

    python -m benchmarks.methods.workers [--trainings 4]

Our server imports once and forks for each training; a job of submitit is an interpreter of its own,
which starts the script in another one; a worker of joblib imports once and runs one training after
another in the same process. Times are of processor, not of clock, so that a loaded machine tells
the same.
"""

import argparse
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import submitit
from joblib import Parallel, delayed

from cggm.comparison import CompareOptions, RecordStore
from cggm.comparison.clusters import Job
from cggm.comparison.trainings import ComparisonProgress, Queue, locked
from cggm.reports import find_task, load_tasks
from cggm_cls.data.mosi import simulate_mosi

ROOT = Path(__file__).parents[2]
CONFIG = """
max_epochs: 2
batch_size: 32
subsets: false
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
"""


def in_worker(script: str, arguments: Sequence[str]) -> None:
    """A training in a process that others run in as well."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError("a training failed") from end


def spent() -> float:
    """Seconds of processor time of this process and of its children that ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def main() -> None:
    """Measure each side once, after a first training that prepares the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate_mosi(folder / "mosi.pkl", train=64, valid=32, test=32)
        (folder / "tiny.yaml").write_text(CONFIG)
        os.environ["OMP_NUM_THREADS"] = "1"
        told = {"data": folder / "mosi.pkl", "config": folder / "tiny.yaml"}
        task = find_task("mosi", load_tasks(ROOT / "configs" / "tasks.yaml"))
        shared = CompareOptions("mosi", folder, "plain", options.trainings + 1, **told)
        runs = shared.plan([task]).runs(ROOT / "configs")
        Job(runs[0], folder, 1)()
        for side in (server, jobs, workers):
            before = spent()
            side(runs[1:], folder / side.__name__)
            print(f"{side.__name__:8} {(spent() - before) / options.trainings:6.2f} s a training")


def server(runs: Sequence, output: Path) -> None:
    """Our fork server."""
    from multiprocessing import forkserver

    output.mkdir()
    with locked(output) as lock:
        progress = ComparisonProgress(runs, len(runs))
        Queue(RecordStore(output), lock=lock, jobs=1, report=progress.show).run(runs)
    forkserver._forkserver._stop()  # whose children count once it has ended


def jobs(runs: Sequence, output: Path) -> None:
    """Submitit's own local executor."""
    executor = submitit.LocalExecutor(output / "jobs")
    for run in runs:
        executor.submit(Job(run, output, 1)).result()


def workers(runs: Sequence, output: Path) -> None:
    """A worker of joblib."""
    from joblib.externals.loky import get_reusable_executor

    told = [("--output", str(r.folder(output)), "--seed", str(r.seed), *r.arguments) for r in runs]
    calls = [delayed(in_worker)(str(r.task.script), t) for r, t in zip(runs, told, strict=True)]
    Parallel(n_jobs=2)(calls)  # one worker would be this process itself
    get_reusable_executor().shutdown(wait=True)


if __name__ == "__main__":
    main()
