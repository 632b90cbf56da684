"""Training in bfloat16 against float32 on a processor that has instructions for it.

    python -m benchmarks.methods.precision [--json FILE] [--folder DIR] [--seeds 2] [--turns 7]

A step's processor time is measured on the demo's network and on one with the usual decoder, both
sides taking turns, so that a change of load meets both. What networks come to is measured by
training configs/brats/demo.yaml on the simulated cohort of ``cggm demo`` with and without ``--amp
cpu``, from the same seeds: the mean Dice of its four held-out cases, by weights of the last epoch.
Both are evaluated in float32. Trainings that a result is there for are not run again.
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
from benchmarks.known.lesions import ROOT, measured, train_demo
from benchmarks.machine import machine
from benchmarks.methods.segmentation_step import make_balancer
from cggm.runs import read_yaml
from cggm_seg.data import MODALITIES
from cggm_seg.inference import computes_bf16
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.simulation import simulate_cohort

EPOCHS = 10  # those of the demo
AMP = {"float32": "false", "bfloat16": "cpu"}
DEMO = read_yaml(ROOT / "configs" / "brats" / "demo.yaml")
NETWORKS = {"demo": DEMO["network"], "usual decoder": {"encoder_name": "tu-lcnet_050"}}


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
    steps = {name: step_ratios(NETWORKS[name], options.turns) for name in NETWORKS}
    for name, ratios in steps.items():
        told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name}: bfloat16 takes {told} times the processor time of float32")
    rows = measured(options.json)
    record = {"machine": machine("torch", "monai"), "steps": steps, "rows": rows}
    for seed in range(options.seeds):
        for side in AMP:
            if (side, seed) not in {(row["precision"], row["seed"]) for row in rows}:
                rows.append(trained(side, seed, options.folder))
                print(json.dumps(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def step_ratios(settings: Mapping[str, Any], turns: int) -> list[float]:
    """Processor time of a step in bfloat16 over one in float32, of each turn, from the least on."""
    torch.manual_seed(0)
    network = MultiEncoderDeepLabV3Plus(**settings)
    images, labels = torch.randn(8, 4, 128, 128), torch.randint(0, 4, (8, 128, 128))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
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
