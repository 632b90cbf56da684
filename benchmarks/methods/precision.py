"""Training in bfloat16 against float32 on a processor that has instructions for it.

    python -m benchmarks.methods.precision [--json FILE] [--folder DIR] [--seeds 2] [--turns 7]

A step's processor time is measured on the demo's network, both sides taking turns, so that a change
of load meets both. What networks come to is measured by training configs/brats/demo.yaml on the
simulated cohort of ``cggm demo`` with and without ``--amp cpu``, from the same seeds: the mean Dice
of its four held-out cases, by weights of the last epoch. Both are evaluated in float32.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch

from benchmarks.known.lacking import subset_dice
from benchmarks.known.lesions import train_demo
from benchmarks.machine import machine
from benchmarks.methods.segmentation_step import make_balancer, make_parts
from cggm_seg.data import MODALITIES
from cggm_seg.inference import computes_bf16
from cggm_seg.simulation import simulate_cohort

EPOCHS = 10  # those of the demo
AMP = {"float32": "false", "bfloat16": "cpu"}


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "precision")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each side")
    parser.add_argument("--turns", type=int, default=7, help="steps of each side")
    options = parser.parse_args()
    if not computes_bf16(torch.device("cpu")):
        print("This processor has no instructions for bfloat16.")
        return 2
    ratios = step_ratios(options.turns)
    told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"bfloat16 takes {told} times the processor time of float32, {len(ratios)} turns")
    record: dict[str, Any] = {"machine": machine("torch", "monai"), "ratios": ratios, "rows": []}
    for seed in range(options.seeds):
        for side in AMP:
            row = trained(side, seed, options.folder)
            print(json.dumps(row), flush=True)
            record["rows"].append(row)
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def step_ratios(turns: int) -> list[float]:
    """Processor time of a step in bfloat16 over one in float32, of each turn, from the least on."""
    sizes = argparse.Namespace(device="cpu", encoder="tu-lcnet_050", size=128, batch=8)
    network, optimizer, (images, labels) = make_parts(sizes)
    balancer = make_balancer("light heads", network).bind(network)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns + 1):
        for half in seconds:
            start = time.process_time()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = balancer(network(images), labels)
            loss.backward()
            optimizer.step()
            if turn:
                seconds[half].append(time.process_time() - start)
    return sorted(a / b for a, b in zip(seconds[True], seconds[False], strict=True))


def trained(side: str, seed: int, folder: Path) -> Mapping[str, Any]:
    """Dice of a trained network on cases that it has not seen, and what its training took."""
    simulate_cohort(folder / "train", cases=16, progress=False)
    simulate_cohort(folder / "held-out", cases=4, seed=1, prefix="HELD", progress=False)
    run = folder / f"{side}-{seed}"
    start = os.times()
    settings = {"data": folder / "train", "output": run, "seed": seed, "amp": AMP[side]}
    train_demo({**settings, "max_epochs": EPOCHS, "validate_every": EPOCHS})
    end = os.times()
    taken = end.children_user - start.children_user + end.children_system - start.children_system
    [dice] = subset_dice(run, folder / "held-out", [MODALITIES]).values()
    return {"precision": side, "seed": seed, "dice": dice, "processor_seconds": round(taken, 1)}


if __name__ == "__main__":
    raise SystemExit(main())
