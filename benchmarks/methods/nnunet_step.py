"""Time and memory of balanced nnU-Net training steps against nnU-Net's own from the same plan.

    python -m benchmarks.methods.nnunet_step [--size 64] [--residual] [--repeats 5] [--json FILE]

nnU-Net plans for SIMULATED cases of that size, and every side trains by nnU-Net's own step: its
network with one encoder, ours trained jointly, and ours under two methods. Sides take turns within
one process for the times; peak memory is taken in a process of its own for each side, above what
the imports take.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import machine
from cggm_nnunet import (
    nnUNetTrainerCGGM,
    nnUNetTrainerJoint,
    nnUNetTrainerMRDUnimodalLosses,
    simulate_dataset,
)

MODULE = "benchmarks.methods.nnunet_step"
NUMBER = 997
PLANNERS = {
    False: ("ExperimentPlanner", "nnUNetPlans"),
    True: ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
}


def sides() -> dict[str, Any]:
    """Trainers by the name of their side, nnU-Net's own first."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return {
        "nnU-Net": nnUNetTrainer,
        "joint": nnUNetTrainerJoint,
        "CGGM": nnUNetTrainerCGGM,
        "MRD + unimodal losses": nnUNetTrainerMRDUnimodalLosses,
    }


def plan(folder: Path, size: int, *, residual: bool) -> Path:
    """Let nnU-Net plan for simulated cases; returns the file of the plans."""
    for part in ("raw", "preprocessed", "results"):
        (folder / part).mkdir()
    simulate_dataset(folder / "raw", NUMBER, "brain", cases=2, shape=(size, size, size))
    planner, name = PLANNERS[residual]
    number = ["-d", str(NUMBER)]
    for command, *rest in (
        ["extract_fingerprint", *number, "-np", "1"],
        ["plan_experiment", *number, "-pl", planner],
    ):
        script = Path(sys.executable).with_name(f"nnUNetv2_{command}")
        subprocess.run([script, *rest], check=True, capture_output=True)
    (file,) = folder.glob(f"preprocessed/*/{name}.json")
    cases = (
        file.parent
        / json.loads(file.read_text())["configurations"]["3d_fullres"]["data_identifier"]
    )
    cases.mkdir()
    (cases / "case.b2nd").touch()  # by whose ending nnU-Net tells how cases are stored
    return file


def build(kind: Any, plans: Path, device: str) -> Any:  # noqa: ANN401
    """A trainer of a side, ready to step."""
    described = json.loads((plans.parent / "dataset.json").read_text())
    planned = json.loads(plans.read_text()) | {"continue_training": False}
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        trainer = kind(planned, "3d_fullres", 0, described, torch.device(device))
        trainer.initialize()
    trainer.network.train()
    if hasattr(trainer, "balancing"):
        trainer.balancing.balancer.start_epoch(1)
    return trainer


def batch(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    """A batch as nnU-Net's loader gives it, of random numbers, always the same."""
    configuration = trainer.configuration_manager
    generator = torch.Generator().manual_seed(0)
    patch = configuration.patch_size
    shape = (configuration.batch_size, trainer.num_input_channels, *patch)
    target = []
    for scales in trainer._get_deep_supervision_scales():
        size = [round(edge * scale) for edge, scale in zip(patch, scales, strict=True)]
        labels = torch.randint(0, 3, (shape[0], 1, *size), generator=generator)
        target.append(labels.to(torch.int16))
    return {"data": torch.randn(shape, generator=generator), "target": target}


def timed_step(trainer: Any, sample: dict[str, Any]) -> float:  # noqa: ANN401
    """Seconds of one training step."""
    start = time.perf_counter()
    trainer.train_step(sample)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(plans: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the steps of each side, taking turns; the first turn is left out."""
    trainers = {side: build(kind, plans, options.device) for side, kind in sides().items()}
    sample = batch(trainers["nnU-Net"])
    seconds: dict[str, list[float]] = {side: [] for side in trainers}
    for _ in range(options.repeats + 1):
        for side, trainer in trainers.items():
            seconds[side].append(timed_step(trainer, sample))
    return {side: found[1:] for side, found in seconds.items()}


def peak(plans: Path, options: argparse.Namespace) -> float:
    """Peak memory in MB of three steps of one side, above what the process held before."""
    kind = sides()[options.side]
    before = _megabytes("VmRSS")
    trainer = build(kind, plans, options.device)
    sample = batch(trainer)
    for _ in range(3):
        trainer.train_step(sample)
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _megabytes("VmHWM") - before


def peaks(plans: Path) -> dict[str, float]:
    """Peak memory of each side, in processes of their own."""
    command = [sys.executable, "-m", MODULE, *sys.argv[1:], "--plans", plans, "--side"]
    return {
        side: float(subprocess.run([*command, side], check=True, capture_output=True).stdout)
        for side in sides()
    }


def _megabytes(field: str) -> float:
    # not ru_maxrss, which a process inherits from the one that started it
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Plan, then measure all sides."""
    with TemporaryDirectory() as folder:
        parts = {f"nnUNet_{part}": str(Path(folder) / part) for part in ("raw", "results")}
        os.environ.update(parts | {"nnUNet_preprocessed": str(Path(folder) / "preprocessed")})
        plans = plan(Path(folder), options.size, residual=options.residual)
        planned = json.loads(plans.read_text())["configurations"]["3d_fullres"]
        memory, seconds = peaks(plans), times(plans, options)
    base, kept = seconds["nnU-Net"], planned["architecture"]["arch_kwargs"]
    rows = {
        side: {
            "seconds": statistics.median(taken),
            "time_ratio": statistics.median(a / b for a, b in zip(taken, base, strict=True)),
            "peak_mb": memory[side],
            "memory_ratio": memory[side] / memory["nnU-Net"],
        }
        for side, taken in seconds.items()
    }
    return {
        "plan": {
            "patch": planned["patch_size"],
            "batch": planned["batch_size"],
            "features": kept["features_per_stage"],
            "residual": options.residual,
        },
        "machine": machine("torch", "nnunetv2"),
        "sides": rows,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--residual", action="store_true", help="plan residual encoders")
    parser.add_argument("--plans", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help="print one side's peak memory and stop")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    if options.side:
        print(peak(options.plans, options))
        return
    found = measure(options)
    print(found["plan"])
    for side, row in found["sides"].items():
        print(
            f"{side:22} {row['seconds']:8.3f} s  x{row['time_ratio']:.2f}  "
            f"{row['peak_mb']:7.0f} MB  x{row['memory_ratio']:.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
