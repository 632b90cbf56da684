"""The commands on tiny networks, as functions and as processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cggm.runs.checkpoints import RunProgress, save_checkpoint
from cggm.runs.cli import run
from cggm.runs.config import read_config, write_config
from cggm.runs.folder import RunFolder
from cggm_seg.training.config import BratsConfig
from pipelines import (
    arrays_train,
    brats_evaluate,
    brats_infer,
    brats_simulate,
    brats_train,
    brats_verify,
    food101_features,
    food101_train,
    iemocap_train,
    mfeat_train,
    mosi_train,
)

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, ModuleType] = {
    "train": brats_train,
    "infer": brats_infer,
    "evaluate": brats_evaluate,
    "verify": brats_verify,
    "simulate": brats_simulate,
    "mosi": mosi_train,
    "iemocap": iemocap_train,
    "food101": food101_train,
    "food101_features": food101_features,
    "mfeat": mfeat_train,
    "arrays": arrays_train,
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


def untrained_run(folder: Path) -> Path:
    """Makes a run folder with a checkpoint, as training would leave it."""
    run_folder = RunFolder.create(folder, name="tiny")
    config = read_config(BratsConfig, [tiny_config(folder)])
    write_config(config, run_folder.config)
    save_checkpoint(run_folder.checkpoints, config.network.build(), {}, RunProgress(1, 1))
    return folder


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


def refused(capsys: pytest.CaptureFixture[str], script: str, *argv: object) -> str:
    """The single line that a command says before it ends with exit code 2."""
    capsys.readouterr()
    assert call(script, *argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    return message


def left_over(folder: Path) -> list[str]:
    """Hidden files and folders, which a command makes only for as long as it writes.

    A cohort's cache and the file that a run is locked by stay.
    """
    hidden = (path for path in folder.rglob(".*") if path.name not in (".slices", ".lock"))
    return sorted(str(path.relative_to(folder)) for path in hidden)
