"""Two processes under Gloo, each a rank, for what a test has to see on both."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.house import ROOT

WORLD = 2


def on_two_ranks(part: Callable[[int], Any], folder: Path, timeout: float = 120) -> list[Any]:
    """What a function of a test module returns on rank 0 and on rank 1.

    Each rank is a process of its own with one thread, in which DDP and collectives work.
    """
    command = [sys.executable, "-m", __name__, part.__module__, part.__name__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in range(WORLD)
    ]
    try:
        assert [rank.wait(timeout) for rank in ranks] == [0] * WORLD
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(_file(folder, rank)) for rank in range(WORLD)]


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"


def _main(module: str, name: str, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store, wait = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", store, wait, world_size=WORLD, rank=rank)
    found = getattr(import_module(module), name)(rank)
    torch.save(found, _file(folder, rank))
    dist.destroy_process_group()
    sys.stdout.flush()
    # Gloo's threads outlive the group: one that lets go of a tensor while the interpreter ends
    # cannot get its lock any more and may abort the process.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
