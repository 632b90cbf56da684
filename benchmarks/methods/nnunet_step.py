"""Time and memory of balanced nnU-Net training steps against nnU-Net's own from the same plan.

    python -m benchmarks.methods.nnunet_step [--size 32] [--residual] [--repeats 5] [--json FILE]

The plan is one for cubic patches of that size, four channels, a batch of 2, with topology and
widths by nnU-Net's rules. Every side trains by nnU-Net's own step on random numbers: its network
with one encoder, ours trained jointly, and ours under two methods. Sides take turns within one
process for the times, which are the processor's; peak memory is taken in a fork of its own for
each side, above what the imports take. The file keeps what it holds of other plans.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import (
    get_pool_and_conv_props,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.machine import machine
from cggm_nnunet import (
    nnUNetTrainerCGGM,
    nnUNetTrainerJoint,
    nnUNetTrainerMRDUnimodalLosses,
)

UNETS = "dynamic_network_architectures.architectures.unet."
DATA = "Dataset997_Step"
DESCRIBED = {
    "channel_names": {
        str(number): name for number, name in enumerate(("T1", "T1c", "T2", "FLAIR"))
    },
    "labels": {"background": 0, "edema": 1, "lesion": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def sides() -> dict[str, Any]:
    """Trainers by the name of their side, nnU-Net's own first."""
    return {
        "nnU-Net": nnUNetTrainer,
        "joint": nnUNetTrainerJoint,
        "CGGM": nnUNetTrainerCGGM,
        "MRD + unimodal losses": nnUNetTrainerMRDUnimodalLosses,
    }


def planned_network(size: int, *, residual: bool) -> tuple[dict[str, Any], list[int]]:
    """What a plan says of the network for cubic patches, by nnU-Net's rules, and the patch."""
    _, strides, kernels, patch, _ = get_pool_and_conv_props([1.0] * 3, [size] * 3, 4, 999999)
    stages = len(strides)
    blocks = {"n_blocks_per_stage": [1, 3, 4, *[6] * 9][:stages]}
    described: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": [min(320, 32 * 2**stage) for stage in range(stages)],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": kernels,
        "strides": strides,
        **(blocks if residual else {"n_conv_per_stage": [2] * stages}),
        "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network = {
        "network_class_name": UNETS + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": described,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return network, [int(edge) for edge in patch]


def plan(folder: Path, size: int, *, residual: bool) -> Path:
    """Write plans of cubic patches; returns their file."""
    network, patch = planned_network(size, residual=residual)
    configuration = {
        "data_identifier": "cases",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "spacing": [1.0] * 3,
        "architecture": network,
        "batch_dice": False,
    }
    plans: dict[str, Any] = {"dataset_name": DATA, "plans_name": "nnUNetPlans"}
    plans |= {"label_manager": "LabelManager", "configurations": {"3d_fullres": configuration}}
    home = folder / "preprocessed" / DATA
    (home / "cases").mkdir(parents=True)
    (home / "cases" / "case.b2nd").touch()  # by whose ending nnU-Net tells how cases are stored
    (home / "dataset.json").write_text(json.dumps(DESCRIBED))
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str(folder / part)
    file = home / "nnUNetPlans.json"
    file.write_text(json.dumps(plans, default=int))
    return file


def build(kind: Any, plans: Path) -> Any:  # noqa: ANN401
    """A trainer of a side on the processor, ready to step."""
    described = json.loads((plans.parent / "dataset.json").read_text())
    planned = json.loads(plans.read_text()) | {"continue_training": False}
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        trainer = kind(planned, "3d_fullres", 0, described, torch.device("cpu"))
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
    """Seconds of the processor's time that one training step takes."""
    start = time.process_time()
    trainer.train_step(sample)
    return time.process_time() - start


def times(plans: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the steps of each side, taking turns; the first turn is left out."""
    trainers = {side: build(kind, plans) for side, kind in sides().items()}
    sample = batch(trainers["nnU-Net"])
    seconds: dict[str, list[float]] = {side: [] for side in trainers}
    for _ in range(options.repeats + 1):
        for side, trainer in trainers.items():
            seconds[side].append(timed_step(trainer, sample))
    return {side: found[1:] for side, found in seconds.items()}


def peak(kind: Any, plans: Path) -> float:  # noqa: ANN401
    """Peak memory in MB of two steps of one side, above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _megabytes("VmRSS")
    trainer = build(kind, plans)
    sample = batch(trainer)
    for _ in range(2):
        trainer.train_step(sample)
    return _megabytes("VmHWM") - before


def peaks(plans: Path) -> dict[str, float]:
    """Peak memory of each side, in forks of a process that has computed nothing yet."""
    context = multiprocessing.get_context("fork")
    found = {}
    for side, kind in sides().items():
        answers = context.SimpleQueue()
        process = context.Process(target=lambda k=kind, a=answers: a.put(peak(k, plans)))
        process.start()
        found[side] = answers.get()
        process.join()
    return found


def _megabytes(field: str) -> float:
    # not ru_maxrss, which a process inherits from the one that started it
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Write a plan, then measure all sides."""
    with TemporaryDirectory() as folder:
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
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--residual", action="store_true", help="plan residual encoders")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options)
    print(found["plan"])
    for side, row in found["sides"].items():
        print(
            f"{side:22} {row['seconds']:8.3f} s  x{row['time_ratio']:.2f}  "
            f"{row['peak_mb']:7.0f} MB  x{row['memory_ratio']:.2f}"
        )
    if options.json:
        plans = json.loads(options.json.read_text()) if options.json.exists() else {}
        plans[f"{'residual' if options.residual else 'plain'}, {options.size}"] = found
        options.json.write_text(json.dumps(plans, indent=1) + "\n")


if __name__ == "__main__":
    main()
