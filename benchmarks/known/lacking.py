"""What cases without T1ce are worth in training: they are left out, or learnt from.

    python -m benchmarks.known.lacking [--json FILE] [--folder DIR] [--seeds 3]

Of ten simulated cases with small lesions four lack T1ce. ``--missing refuse`` trains on what is
left, ``--missing allow`` on all of them. The networks are evaluated on four complete cases of
another seed, with each of the 15 subsets of modalities. Rows that a result is there for are kept.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import gettempdir
from typing import Any

from benchmarks.known.lesions import EPOCHS, measured, train_demo
from benchmarks.machine import machine
from cggm.runs import RunFolder
from cggm.tensors import subsets_of
from cggm_seg.data import MODALITIES, open_cohort
from cggm_seg.simulation import simulate_cohort
from cggm_seg.training import TrainedNetwork
from cggm_seg.training.validation import evaluate_cached

CASES, LACKING = 10, (1, 4, 6, 9)  # 40 percent
WAYS = ("refuse", "allow")
METHODS = ("joint", "mrd", "cggm")


def main() -> None:
    options = parse()
    write_cohorts(options.folder)
    rows = measured(options.json)
    known = {(row["method"], row["missing"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for method in options.methods:
            for missing in WAYS:
                if (method, missing, seed) not in known:
                    rows.append(measure(method, missing, seed, options.folder))
                    print(json.dumps(rows[-1]), flush=True)
                    if options.json:
                        write(options.json, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "lacking")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    return parser.parse_args()


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    record = {"machine": machine("torch", "monai"), "epochs": EPOCHS, "rows": rows}
    file.write_text(json.dumps(record, indent=1) + "\n")


def write_cohorts(folder: Path) -> None:
    """Ten cases of which four lose their T1ce, and four others that are complete."""
    if not (folder / "held-out").is_dir():
        simulate_cohort(folder / "data", cases=CASES, lesions="small", progress=False)
        for number in LACKING:
            [file] = (folder / "data").glob(f"*{number:05d}/*_t1ce.nii.gz")
            file.unlink()
        simulate_cohort(folder / "held-out", cases=4, lesions="small", seed=1, progress=False)


def measure(method: str, missing: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains, and gives the mean Dice of the held-out cases for each subset of modalities."""
    run = folder / f"{method}-{missing}-{seed}"
    train_demo(
        {
            "data": folder / "data",
            "output": run,
            "method": method,
            "seed": seed,
            "missing": missing,
            "validation_fraction": 0.1,
        }
    )
    dice = subset_dice(run, folder / "held-out")
    groups = {
        "all": dice["+".join(MODALITIES)],
        "mean of 15": fmean(dice.values()),
        "mean with t1ce": fmean(v for k, v in dice.items() if "t1ce" in k.split("+")),
        "mean without t1ce": fmean(v for k, v in dice.items() if "t1ce" not in k.split("+")),
    }
    trained = len(json.loads((run / "split.json").read_text())["training"])
    identity = {"method": method, "missing": missing, "seed": seed, "trained on": trained}
    return {**identity, **groups, "subsets": dice}


def subset_dice(
    run: Path, data: Path, subsets: Sequence[tuple[str, ...]] = subsets_of(MODALITIES)
) -> Mapping[str, float]:
    """Mean of WT, TC and ET over all cases of a folder, by the modalities that are there."""
    trained = TrainedNetwork.load([RunFolder(run)])
    cache = open_cohort(data, trained.config).cache
    found = evaluate_cached(trained.network, cache, cache.case_ids, subsets=subsets)  # type: ignore[arg-type]
    return {"+".join(s): fmean(float(r["dice_mean"]) for r in found[s]) for s in subsets}


if __name__ == "__main__":
    main()
