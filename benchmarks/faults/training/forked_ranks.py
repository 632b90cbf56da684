"""Ranks that are forks of this process, see forked.py, and talk by Gloo."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.processes.forked import ended, start


def run_ranks(work: Callable[[int], None], world: int, folder: Path) -> None:
    """Work in a process group of forks, each with what torchrun tells a rank.

    Args:
        work: Takes the number of the rank, and joins the others.
        world: Number of ranks.
        folder: For what they say.
    """
    port = _free_port()

    def work_as_rank(number: int) -> None:
        _set_rank(number, world, port)
        work(number)

    logs = [folder / f"log{number}.txt" for number in range(world)]
    ranks = [start(lambda k=k: work_as_rank(k), logs[k]) for k in range(world)]  # type: ignore[misc]
    said = [log.read_text() for log, pid in zip(logs, ranks, strict=True) if ended(pid)]
    assert not said, "\n".join(said)


def _set_rank(number: int, world: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(world),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
