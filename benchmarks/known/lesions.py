"""Whether large and small lesions are learnt, on cohorts of two simulators.

    python -m benchmarks.known.lesions [--json FILE] [--folder DIR] [--seeds 3]
        [--cohorts small balls]

Trains configs/brats/demo.yaml for 25 epochs with the Dice of regions, its recommendation, and with
the paper's Dice of all foreground; cases that were not trained on are evaluated once, with the
weights of the last epoch, so that nothing was selected on them. A seed decides weights, batches and
which cases these are. Runs that a result is there for are not run again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from benchmarks.known.lesion_phantom import write_cohort
from benchmarks.machine import machine
from cggm_seg.simulation import simulate_cohort

ROOT = Path(__file__).parents[2]
EPOCHS = 25
# Share of the cases that is not trained on: 2 of 8, 3 of 16.
COHORTS = {"large": 0.2, "small": 0.25, "balls": 0.25}
METHODS = ("joint", "cggm")
TERMS = {"regions": "regions", "foreground": "lesion"}  # of loss.dice, with its slices.focus


class Training(NamedTuple):
    """One row of the result."""

    cohort: str
    dice: str
    method: str
    seed: int


def main() -> None:
    options = parse()
    rows = measured(options.json)
    for training in trainings(options):
        if training not in {identity(row) for row in rows}:
            rows.append(measure(training, options.folder))
            print(json.dumps(rows[-1]), flush=True)
            if options.json:
                record = {"machine": machine("torch", "monai"), "epochs": EPOCHS, "rows": rows}
                options.json.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "lesions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cohorts", nargs="+", choices=COHORTS, default=list(COHORTS))
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    return parser.parse_args()


def measured(file: Path | None) -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    return json.loads(file.read_text())["rows"] if file and file.exists() else []


def identity(row: Mapping[str, Any]) -> Training:
    return Training(row["cohort"], row["dice"], row["method"], row["seed"])


def trainings(options: argparse.Namespace) -> Iterator[Training]:
    for dice in options.terms:
        for seed in range(options.seeds):
            for cohort in options.cohorts:
                for method in options.methods:
                    yield Training(cohort, dice, method, seed)


def measure(training: Training, folder: Path) -> dict[str, Any]:
    """Trains and gives the Dice of the cases that were not trained on."""
    data, run = folder / training.cohort, folder / "-".join(map(str, training))
    if training.cohort == "balls":
        write_cohort(data)
    else:
        simulate_cohort(data, lesions=training.cohort, progress=False)  # type: ignore[arg-type]
    train(training, data, run)
    results = json.loads((run / "results.json").read_text())
    split = json.loads((run / "split.json").read_text())
    return {**training._asdict(), "unseen": split["validation"], **results["validation"],
            "seconds": seconds(run), **readings(run)}  # fmt: skip


def train(training: Training, data: Path, run: Path) -> None:
    settings = {
        "data": data, "output": run, "method": training.method, "seed": training.seed,
        "loss.dice": training.dice, "slices.focus": TERMS[training.dice],
        "validation_fraction": COHORTS[training.cohort],
    }  # fmt: skip
    train_demo(settings)


def train_demo(settings: Mapping[str, Any]) -> None:
    """Trains demo.yaml with some options for 25 epochs, of which the last one counts.

    One process, with one thread, so that weights do not depend on the machine's cores. What a
    training that was ended left in its folder is deleted.
    """
    shutil.rmtree(settings["output"], ignore_errors=True)
    settings = {
        "config": ROOT / "configs" / "brats" / "demo.yaml", "max_epochs": EPOCHS,
        "validate_every": EPOCHS, "subsets": "false", "curves": "false", "report": "false",
        "workers": 0, "device": "cpu", **settings,
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "brats_train.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])


def seconds(run: Path) -> float:
    lines = (run / "timing.jsonl").read_text().splitlines()
    return round(sum(json.loads(line)["seconds"] for line in lines), 1)


def readings(run: Path) -> dict[str, Any]:
    """Mean factor of each modality and its head's score at the end; of joint training none."""
    rows = [json.loads(line) for line in (run / "balance.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "score" in row]
    if not rows:
        return {}
    last = rows[-len(rows) // 5 :]
    return {"factor": mean(rows, "term"), "score": mean(last, "score")}


def mean(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {name: sum(row[key][name] for row in rows) / len(rows) for name in rows[0][key]}


if __name__ == "__main__":
    main()
