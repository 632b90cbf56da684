"""The BraTS commands on a tiny network, as functions and as processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

from cggm.runs.cli import run
from pipelines import brats_evaluate, brats_infer, brats_train

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, ModuleType] = {
    "train": brats_train,
    "infer": brats_infer,
    "evaluate": brats_evaluate,
}
TINY = """
batch_size: 4
workers: 0
validate_every: 1
network:
  encoder_name: tu-lcnet_050
  decoder_channels: 16
  low_level_channels: 8
slices: {size: 32, per_case: 2}
optimizer: {lr_peak: 0.05, warmup_epochs: 1}
"""

torch.set_num_threads(1)  # as the processes below, which makes their numbers comparable


def tiny_config(folder: Path, max_epochs: int = 1) -> Path:
    """Writes a configuration that trains in seconds."""
    file = folder / "tiny.yaml"
    file.write_text(f"max_epochs: {max_epochs}\n{TINY}")
    return file


def call(script: str, *argv: object) -> int:
    """Runs a command in this process; returns its exit code."""
    return run(SCRIPTS[script].main, [str(argument) for argument in argv])


def start(script: str, *argv: object, **options: object) -> "subprocess.Popen[str]":
    """Starts a command as a process of its own, with one thread."""
    command = [sys.executable, SCRIPTS[script].__file__, *map(str, argv)]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def left_over(folder: Path) -> list[str]:
    """Hidden files and folders, which a command makes only for as long as it writes."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name != ".slices"
    )
