"""A training of a second on simulated sequences, by the command that users give."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch
from ignite.engine import Engine, Events

from benchmarks.faults.processes.forked import forked
from cggm.runs.checkpoints.files import find_checkpoints, read_header, verified
from cggm.runs.cli import run
from cggm_cls.data.mosi.files import load_mosi
from cggm_cls.data.mosi.simulation import simulate_mosi
from cggm_cls.training import assembly as training
from pipelines import mosi_train

LOGS = ("metrics.jsonl", "balance.jsonl", "results.json")
CONFIG = {
    "max_epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "threads": 1,
    "subsets": False,
    "curves": False,
    "report": False,
    "save_minutes": 0,
    "network": {"width": 8, "attention_heads": 2, "encoder_layers": 1, "fusion_layers": 1},
    "optimizer": {"lr": 0.01, "head_lr": 0.01},
}


class SmallTraining:
    """Its data and configuration, and an uninterrupted run of it.

    Args:
        folder: For all files.
        **options: Of its configuration, other than :data:`CONFIG`.
    """

    def __init__(self, folder: Path, **options: object) -> None:
        torch.set_num_threads(1)
        self.folder, self.whole, self.log = folder, folder / "whole", folder / "log.txt"
        self.data, self._config = folder / "mosi.pkl", folder / "config.yaml"
        simulate_mosi(self.data, train=128, valid=16, test=16)
        load_mosi(self.data, None)  # converts it
        self._config.write_text(json.dumps(CONFIG | options))
        assert forked(self._first_run, self.log) == 0, self.log.read_text()
        import_again(folder / "modules")
        start = perf_counter()
        assert forked(lambda: self.train(self.whole), self.log) == 0, self.log.read_text()
        self.seconds = perf_counter() - start

    def _first_run(self) -> None:
        self.train(self.folder / "first")
        (self.folder / "modules").write_text("\n".join(sys.modules))

    def arguments(self, run_folder: Path) -> list[str]:
        """What the command is given to begin a run, or to resume it."""
        if (run_folder / "config.yaml").exists():
            return ["--resume", str(run_folder)]
        return self.beginning(run_folder, self.data)

    def beginning(self, run_folder: Path, data: Path) -> list[str]:
        """What the command is given to begin a run."""
        paths = ("--data", data, "--config", self._config, "--output", run_folder)
        return [str(word) for word in paths]

    def train(self, run_folder: Path) -> int:
        """Begin or resume a run in this process; returns the exit code."""
        return run(mosi_train.main, self.arguments(run_folder))

    def equals_whole(self, run_folder: Path) -> bool:
        """Whether a run ended as the uninterrupted one did."""
        return _outcome(run_folder) == _outcome(self.whole)


def import_again(names: Path) -> None:
    """Import what a fork has listed, so that later ones find it."""
    for name in names.read_text().splitlines():
        with suppress(Exception):  # names that are no modules
            import_module(name)
    threads = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    # pyarrow's allocator has a thread that every fork starts anew.
    assert len([name for name in threads if not name.startswith("jemalloc")]) == 1, threads


def count_steps(notes: Sequence[int]) -> None:
    """Let the trainings of this process note the step that they begin.

    Args:
        notes: Shared memory; its first number is set.
    """
    start = training.Session.run

    def run_with_note(self: training.Session) -> None:
        @self.trainer.on(Events.ITERATION_STARTED)
        def note(engine: Engine) -> None:
            notes[0] = engine.state.iteration  # type: ignore[index]

        start(self)

    training.Session.run = run_with_note  # type: ignore[method-assign]


def checkpoints_are_whole(folder: Path) -> bool:
    """Whether every checkpoint that a reader sees has the content that was written."""
    paths = find_checkpoints(folder / "checkpoints")
    return all(
        verified(path, name, header).is_file()
        for path in paths
        for header in [read_header(path)]
        for name in header["files"]
    )


def saved_steps(run_folder: Path) -> int:
    """Steps of the last checkpoint, 0 without one."""
    paths = find_checkpoints(run_folder / "checkpoints")
    return int(paths[-1].name.rpartition("-")[2]) if paths else 0


def hidden(folder: Path) -> list[str]:
    """Drafts and temporary files."""
    return [path.name for path in folder.rglob(".*")]


def _outcome(run_folder: Path) -> dict[str, bytes]:
    """Contents of the logs and of the weights of every kept checkpoint."""
    weights = sorted(run_folder.glob("checkpoints/*/model.safetensors"))
    files = [*weights, *(run_folder / name for name in LOGS)]
    return {os.fspath(f.relative_to(run_folder)): f.read_bytes() for f in files if f.exists()}
