"""What methods do on simulated data where the right answer is known.

    python -m benchmarks.known.answer [--quick] [--seeds N] [--jobs 2] [--controls] [--json FILE]
        [--resume]

Every method, see known/rows.py, on three tasks in five scenarios, see known/data.py, where what a
balancing method should do in each is written down beforehand. For one seed all methods get the same
data, batches and initial weights, so that each is compared with joint training in pairs. Scores are
in hundredths: accuracy, negative mean absolute error, Dice. "probe" is the lower of the two scores
that ridge regression on one encoder's features reaches. Intervals are Student's at 95 %; the last
column is the verdict on what the scenario is judged by: the score, or in (d) the score without A.
One seed is run to its end before the next begins, so that a run that is ended early leaves whole
seeds beside the JSON file, in FILE.partial: ``--resume`` takes its trainings over, with ``--seeds``
as many as are to count. Nothing checks that the code is still the same.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from scipy.stats import t as student

from benchmarks.known.data import NOISE, SCENARIOS, TASKS
from benchmarks.known.rows import CONTROLS, CORE, METHODS, RIVALS
from benchmarks.known.speed import measure_speed
from benchmarks.known.training import RATES, Case, run
from benchmarks.machine import machine
from cggm.errors import UserError

QUICK = ("joint", "CGGM", "constant", "random", "ungated rho 1")
Job = tuple[Case, str, int]  # what is trained how, and its epochs
KEYS = ("task", "scenario", "optimizer")
UNSAID = ("json", "resume", "controls")
# Seeds below served to choose the default of CGGM.
FIRST_SEED = 200
SEEDS = {"classification": 5, "regression": 5, "segmentation": 3}
EPOCHS = {"classification": 20, "regression": 12, "segmentation": 30}


def main() -> None:
    options = parse()
    with get_context("spawn").Pool(options.jobs) as pool:
        speed = measure_speed(pool, options)
        results = measure(pool, options)
    rows = summarize(results)
    print_tables(rows)
    if options.json:
        record = {
            "machine": machine("torch"),
            "settings": {k: v for k, v in vars(options).items() if k not in UNSAID},
            "epochs": EPOCHS, "rates": RATES, "noise": NOISE,
            "speed": speed, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(finite(record), allow_nan=False) + "\n")
    partial_of(options).unlink()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument(
        "--quick", action="store_true", help="few methods and seeds, half the epochs, SGD alone"
    )
    parser.add_argument("--seeds", type=int, help="how many, of each task")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first one")
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--methods", nargs="+", choices=METHODS, help="joint among them")
    chosen.add_argument("--controls", action="store_true", help="rivals that have some, and these")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--optimizers", nargs="+", choices=RATES)
    parser.add_argument(
        "--resume", action="store_true", help="take over what an interrupted run left"
    )
    options = parser.parse_args()
    if "joint" not in (options.methods or ["joint"]):
        parser.error("--methods must name joint, which the others are compared with")
    if partial_of(options).exists() and not options.resume:
        left = partial_of(options)
        parser.error(f"{left} is what an interrupted run left: add --resume, or delete it")
    quick = options.quick
    options.seeds = dict.fromkeys(TASKS, options.seeds or 2) if options.seeds or quick else SEEDS
    if options.controls:
        controlled = dict.fromkeys(name.partition(":")[0] for name in CONTROLS)
        options.methods = ["joint", *controlled, *CONTROLS]
    options.methods = options.methods or list(QUICK if quick else CORE | RIVALS)
    options.optimizers = options.optimizers or list(RATES)[: 1 if quick else None]
    return options


def measure(pool: Pool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per training that its method can serve."""
    jobs = list(planned(options))
    done = taken_over(options)
    missing = [job for job in jobs if job not in done]
    with partial_of(options).open("a") as partial:
        for count, result in enumerate(pool.imap(run_job, missing)):
            case, *rest = job = missing[count]
            done[job] = result
            partial.write(json.dumps([vars(case), *rest, result]) + "\n")
            partial.flush()
            if count % 50 == 49:
                print(f"{count + 1} of {len(missing)} trainings", flush=True)
    return [result for job in jobs if (result := done[job])]


def planned(options: argparse.Namespace) -> Iterator[Job]:
    """Trainings, those of one seed together."""
    for index in range(max(options.seeds.values())):
        tasks = [task for task in options.tasks if index < options.seeds[task]]
        for task, scenario, optimizer, method in itertools.product(
            tasks, options.scenarios, options.optimizers, options.methods
        ):
            if task in RATES[optimizer]:  # segmentation is trained as BraTS is, with SGD
                case = Case(task, scenario, optimizer, options.first + index)
                yield case, method, EPOCHS[task] // (1 + options.quick)


def partial_of(options: argparse.Namespace) -> Path:
    """Where trainings are kept until all are done."""
    file = options.json or Path(gettempdir()) / "known_answer.json"
    return Path(f"{file}.partial")


def taken_over(options: argparse.Namespace) -> dict[Job, dict[str, Any] | None]:
    """What an interrupted run left, without its last line where that was cut."""
    partial = partial_of(options)
    text = partial.read_text() if options.resume and partial.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    new = Path(f"{partial}.new")
    new.write_text(whole)
    new.replace(partial)
    lines = map(json.loads, whole.splitlines())
    return {(Case(**case), *rest): result for case, *rest, result in lines}


def run_job(job: Job) -> dict[str, Any] | None:
    """Figures of one training; ``None`` if the method cannot serve the task."""
    case, method, epochs = job
    try:
        return vars(case) | {"method": method} | run(case, METHODS[method], epochs)
    except UserError:
        return None


def summarize(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means and paired differences to joint training, one row per setting and method."""
    groups: dict[tuple[str, str, str], dict[str, dict[int, Any]]] = {}
    for result in results:
        key = (result["task"], result["scenario"], result["optimizer"])
        groups.setdefault(key, {}).setdefault(result["method"], {})[result["seed"]] = result
    rows = []
    for key, methods in groups.items():
        joint = methods["joint"]
        for method, runs in methods.items():
            row = dict(zip(KEYS, key, strict=True)) | {"method": method}
            for name, figure in FIGURES.items():
                values = [figure(runs[seed]) for seed in joint]
                gaps = [figure(runs[seed]) - figure(joint[seed]) for seed in joint]
                row[name] = sum(values) / len(values)
                row[f"{name} - joint"] = interval(gaps)
                row[f"{name} - joint by seed"] = gaps
            rows.append(row)
    return rows


FIGURES = {
    "score": lambda run: run["score"],
    "probe": lambda run: min(run["probe"].values()),
    "without A": lambda run: run["without"]["A"],
    "without B": lambda run: run["without"]["B"],
    "seconds": lambda run: run["seconds"],
}
SHOWN = list(FIGURES)[:4]


def interval(gaps: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    if len(gaps) < 2 or not all(map(math.isfinite, gaps)):  # a training that diverged
        return sum(gaps) / len(gaps), math.inf
    quantile = float(student.ppf(0.975, len(gaps) - 1))
    return statistics.mean(gaps), quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))


def finite(value: Any) -> Any:  # noqa: ANN401
    """The same with ``None`` where a number is not finite, and four digits behind the point."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def verdict(mean: float, half: float) -> str:
    return "gain" if mean > half else "loss" if mean < -half else "no difference"


def print_tables(rows: list[dict[str, Any]]) -> None:
    previous = None
    for row in rows:
        head = (row["scenario"], row["task"], row["optimizer"])
        if head != previous:
            scenario = SCENARIOS[row["scenario"]]
            print(f"\n({row['scenario']}) {scenario.text}: {row['task']}, {row['optimizer']}")
            print(f"    expected: {scenario.expectation}")
            print(f"{'':24}" + "".join(f"{n:>10}{'- joint':>15}" for n in SHOWN) + "     s")
        previous = head
        cells = [
            f"{row[n]:10.1f}{row[f'{n} - joint'][0]:+8.1f} +-{row[f'{n} - joint'][1]:4.1f}"
            for n in SHOWN
        ]
        judged = "without A" if SCENARIOS[row["scenario"]].absent else "score"
        found = verdict(*row[f"{judged} - joint"])
        print(f"{row['method']:24}" + "".join(cells) + f"{row['seconds']:6.1f}  {found}")


if __name__ == "__main__":
    main()
