"""Compare balancing methods: trainings of methods x seeds, then tables and figures.

    python pipelines/compare.py --task mosi --methods joint,cggm,ogm --seeds 5 --output comparison

Run again with the same output it repeats nothing that is finished; methods and seeds may be added.
A method is a name of configs/methods, with settings where wanted (cggm:rho=0.5), or "unimodal" for
every modality alone. Several tasks are separated by commas and ranked together. With --protocol
missing, methods are compared where modalities are missing.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cggm.comparison import JobOptions
from cggm.runs import DEVICES, parse_options, require, run

if TYPE_CHECKING:
    from cggm.comparison import Outcome, PlannedRun, RecordStore

ROOT = Path(__file__).parent.parent
METHODS = (
    "unimodal,plain,joint,unimodal_losses,mrd,mslr_dynamic,gblending,ogm,ogm_ge,agm,pmr,umt,"
    "joint_late,ume,qmf,reconboost,mmpareto,opm,constant,random,cggm_magnitude,cggm_direction,cggm"
)
MISSING = "joint,mrd_uniform,unimodal_losses,passion,redcore,cggm"


@dataclass(frozen=True)
class CompareOptions:
    """Compare balancing methods.

    Args:
        task: A task of the table: brats, mosi, iemocap, food101, mfeat or htad; several separated
            by commas.
        output: Folder of the comparison.
        methods: Names of configs/methods, separated by commas; with settings as cggm:rho=0.5, and
            unimodal for every modality alone. A selection that suits the protocol where not given.
        seeds: Trainings of each method, with consecutive seeds from 0 on.
        quick: Whether tasks have the small size that the table gives.
        protocol: complete, or missing: methods that take modalities from samples (mrd, passion,
            redcore) keep one of all subsets for each, drawn anew, and all subsets are evaluated.
        sweep: What to tune first, for every method alike, as in
            optimizer.lr=1e-4..1e-2:log,batch_size=32|64,cggm:rho=0.5..2; without a value, CGGM is
            trained with other values of rho and lambda, too (figure 5).
        trials: Of each method, the first with its own settings.
        sweep_engine: random, the same draws for all methods, or optuna.
        jobs: Trainings side by side; one after another here, all at once on a cluster, where not
            given.
        launcher: local, or slurm: each training is a job of an array, and the next command gathers
            what ended meanwhile; submitit-debug tries that without a cluster.
        cluster: What each job gets.
        data: Folder of the data; the demo data where not given.
        config: Configuration laid over the defaults of every training.
        max_epochs: Passes over the training data; those of the configuration where not given.
        device: Where to compute; CUDA if there is one, where not given.
        figures: Format of the figures besides PNG.
        tasks: Table of tasks, in which a task of your own may stand; see configs/tasks.yaml.
    """

    task: str = field(metadata={"metavar": "NAME"})
    output: Path = field(metadata={"metavar": "DIR"})
    methods: str | None = field(default=None, metadata={"metavar": "A,B"})
    seeds: int = field(default=5, metadata={"metavar": "N"})
    quick: bool = False
    protocol: str = field(default="complete", metadata={"metavar": "complete|missing"})
    sweep: bool | str = field(default=False, metadata={"metavar": "KEY=VALUES"})
    trials: int = field(default=10, metadata={"metavar": "N"})
    sweep_engine: Literal["random", "optuna"] = "random"
    jobs: int | None = field(default=None, metadata={"metavar": "N"})
    launcher: Literal["local", "slurm", "submitit-debug"] = "local"
    cluster: JobOptions = field(default_factory=JobOptions)
    data: Path | None = field(default=None, metadata={"metavar": "DIR"})
    config: Path | None = field(default=None, metadata={"metavar": "YAML"})
    max_epochs: int | None = field(default=None, metadata={"metavar": "N"})
    device: str | None = field(default=None, metadata={"metavar": DEVICES})
    figures: Literal["png", "pdf", "svg"] = "png"
    tasks: Path = field(default=ROOT / "configs" / "tasks.yaml", metadata={"metavar": "YAML"})

    def __post_init__(self) -> None:
        for name in ("seeds", "trials"):
            require(getattr(self, name) >= 1, name, "of at least 1", getattr(self, name))
        require(self.jobs is None or self.jobs >= 1, "jobs", "of at least 1", self.jobs)
        free = not (self.quick and self.config)
        require(free, "config", "to be left out with --quick", self.config)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What every training is told."""
        names = ("data", "config", "max_epochs", "device")
        given = {name: getattr(self, name) for name in names}
        return tuple(t for n, v in given.items() if v is not None for t in (f"--{n}", str(v)))

    @property
    def tuned(self) -> tuple[str, ...]:
        """How methods are tuned, which trainings of one folder share."""
        if not isinstance(self.sweep, str):
            return ()
        engine = ("--sweep_engine", self.sweep_engine)
        return ("--sweep", self.sweep, "--trials", str(self.trials), *engine)


def main(argv: Sequence[str]) -> int:
    """Parse, assemble, run."""
    options = parse_options(CompareOptions, __doc__, argv)

    from cggm.comparison import Plan, RecordStore, Sweep, locked, write_results
    from cggm.reports import find_task, load_tasks

    table = load_tasks(options.tasks)
    tasks = [find_task(name, table) for name in options.task.split(",")]
    usual = MISSING if options.protocol == "missing" else METHODS
    methods, seeds = (options.methods or usual).split(","), range(options.seeds)
    plan = Plan(
        (*tasks,),
        (*methods,),
        (*seeds,),
        options.arguments,
        quick=options.quick,
        sweep=options.sweep is True,
        protocol=options.protocol,
        tuned=options.tuned,
    )
    runs = plan.runs(ROOT / "configs")
    sweep = None
    if isinstance(options.sweep, str):
        sweep = Sweep.parse(options.sweep, options.trials, options.sweep_engine)
    plan.keep(options.output)
    store = RecordStore(options.output)
    with locked(options.output) as lock:
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
    options: CompareOptions, lock: int, store: "RecordStore", runs: Sequence["PlannedRun"]
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
