"""Loader workers that fail in the midst of reading: by an error, an exit, a kill, without memory.

A training has to end within seconds, in one error that names the case. PyTorch's loader is given
the same data set.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from multiprocessing import set_start_method
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from benchmarks.faults.processes.child import in_child
from cggm.errors import UserError
from cggm.runs import CaseLoader

_MOST = 20  # seconds
_ITEMS, _BAD = 12, 7


def _raise() -> None:
    raise ValueError("a voxel of no kind")


_FAILURES: dict[str, Callable[[], object]] = {
    "an error": _raise,
    "exit": lambda: os._exit(3),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "no memory": lambda: torch.empty(1 << 42),
}


class _Items(Dataset[torch.Tensor]):
    """Items of which one fails."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __len__(self) -> int:
        return _ITEMS

    def __getitem__(self, index: Any) -> torch.Tensor:  # noqa: ANN401
        if (index[1] if isinstance(index, tuple) else index) == _BAD:
            _FAILURES[self._what]()
        return torch.zeros(1000)


class _Indices(BatchSampler):
    """Batches of two, as pairs of epoch and position."""

    def __iter__(self) -> Any:  # noqa: ANN401
        return ([(0, k), (0, k + 1)] for k in range(0, _ITEMS, 2))


def measure(quick: bool) -> dict[str, Any]:
    workers = (2,) if quick else (1, 2, 4)
    ours, peer = (in_child(_end_all, kind, workers) for kind in ("ours", "torch"))
    return {
        "bar": f"one error of the user's within {_MOST:g} s, naming the case",
        "holds": all(found["one line"] and found["seconds"] < _MOST for found in ours.values())
        and all(found["case named"] for what, found in ours.items() if "no memory" not in what),
        "figures": {"ours": ours, "torch.utils.data.DataLoader": peer},
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    ours, peer = figures["ours"].values(), figures["torch.utils.data.DataLoader"].values()
    told = [sum(found["one line"] for found in ours), sum(found["case named"] for found in ours)]
    return (
        "loader workers that fail",
        f"{told[0]} of {len(ours)} end in one line, {told[1]} with the case, within "
        f"{max(found['seconds'] for found in ours):.1f} s",
        f"PyTorch's loader names the case {sum(found['case named'] for found in peer)} times",
    )


def _end_all(kind: str, workers: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    set_start_method("fork", force=True)  # as in a command; child.py's process spawns
    return {
        f"{what}, {count} workers": _end(kind, what, count)
        for what in _FAILURES
        for count in workers
    }


def _end(kind: str, what: str, workers: int) -> dict[str, Any]:
    sampler = _Indices(SequentialSampler(range(_ITEMS)), 2, drop_last=False)
    name = "CASE_{}".format
    loader: DataLoader[Any]
    if kind == "ours":
        loader = CaseLoader(_Items(what), sampler, name=name, workers=workers)
    else:
        loader = DataLoader(_Items(what), 2, num_workers=workers)
    start, error = time.monotonic(), None
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(2 * _MOST)
    try:
        # PyTorch reports a death wherever its training is; a session has this block around it all.
        with loader.naming_lost_cases() if isinstance(loader, CaseLoader) else nullcontext():
            for _ in loader:
                time.sleep(0.05)
    except Exception as raised:
        error = raised
    signal.alarm(0)
    said = str(error)
    return {
        "error": type(error).__name__,
        "one line": isinstance(error, UserError) and "\n" not in said,
        "case named": name(_BAD) in said,
        "seconds": time.monotonic() - start,
    }


def _give_up(*_: object) -> None:
    raise TimeoutError(f"no end in {2 * _MOST} s")
