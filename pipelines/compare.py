"""Compare balancing methods: trainings of methods x seeds, then tables and figures.

    python pipelines/compare.py --task mosi --methods joint,cggm,ogm --seeds 5 --output comparison

Run again with the same output it repeats nothing that is finished; methods and seeds may be added.
A method is a name of configs/methods, with settings where wanted (cggm:rho=0.5), or "unimodal" for
every modality alone. Several tasks are separated by commas and ranked together. With --protocol
missing, methods are compared where modalities are missing.
"""

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cggm.comparison import CompareOptions
from cggm.runs import holding, parse_options, run

if TYPE_CHECKING:
    from cggm.comparison import Outcome, PlannedRun, RecordStore

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str]) -> int:
    """Parse, assemble, run."""
    options = parse_options(CompareOptions, __doc__, argv)

    from cggm.comparison import RecordStore, Sweep, write_results
    from cggm.reports import find_task, load_tasks

    table = load_tasks(options.tasks or ROOT / "configs" / "tasks.yaml")
    tasks = [find_task(name, table) for name in options.task.split(",")]
    table |= {task.name: task for task in tasks}
    plan = options.plan([task.of_data(options.data) for task in tasks])
    runs = plan.runs(ROOT / "configs")
    sweep = None
    if isinstance(options.sweep, str):
        sweep = Sweep.parse(options.sweep, options.trials, options.sweep_engine)
    plan.keep(options.output)
    store = RecordStore(options.output)
    with holding(options.output, "a comparison (or a training that it left)") as lock:
        train = partial(_train, options, lock)
        if sweep is not None:
            runs = sweep.tuned(runs, options.output, train)
        failed, close = train(store, runs)
        page, report = write_results(
            *(options.output, plan, store.records(runs), store.refused(), table),
            kinds=[options.figures],
        )
    print(f"\ntables, figures and {page}\nreport   {report}")
    close(failed)
    return 1 if failed else 0


def _train(
    options: CompareOptions, lock: int | None, store: "RecordStore", runs: Sequence["PlannedRun"]
) -> tuple[list["Outcome"], Callable[[Sequence["Outcome"]], None]]:
    """Train what a store lacks; returns what failed, and what lists it."""
    from cggm.comparison import ClusterQueue, ComparisonProgress, Queue

    progress = ComparisonProgress(runs, len(store.pending(runs)))
    queue: Queue | ClusterQueue
    if options.launcher == "local":
        queue = Queue(store, lock=lock, jobs=options.jobs or 1, report=progress.show)
    else:
        most, cluster = options.jobs, options.cluster
        queue = ClusterQueue(store, options.launcher, cluster, progress, most=most)
    return queue.run(runs), progress.close


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the trainings, as Ctrl-C does
    raise SystemExit(run(main))
