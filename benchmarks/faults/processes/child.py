"""Work in a process of its own, with its memory measured and limited."""

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def in_child(work: Callable[..., T], *arguments: object) -> T:
    """Result of a function of a module, from a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def limit_memory(size: int) -> None:
    """Let this process fail to allocate more than so many bytes, once and for all."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def extra_memory(work: Callable[[], T]) -> tuple[T, int]:
    """Result, and the most bytes held in memory meanwhile beyond those before; Linux alone."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    result = work()
    return result, _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
