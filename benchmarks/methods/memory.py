"""Peak memory of the steps of every method."""

import ctypes
import gc
import multiprocessing
import re
from pathlib import Path

import torch

from benchmarks.methods.tasks import EPOCHS, TASKS, Task, fusion_of
from cggm import Balancer
from cggm.errors import UserError

# of mallopt(3): from which size an allocation is mapped alone, how many may be, and how much of a
# heap's free memory is kept
_MAPPED_FROM, _MOST_MAPPED, _KEPT = -3, -4, -1


def peaks(name: str, methods: list[str]) -> dict[str, float]:
    """Peak memory in MB of joint training of each network and of methods that are not refused.

    Args:
        name: Of the task.
        methods: Names of configurations.
    """
    work = {f"joint, {fusion}": (name, "plain", fusion) for fusion in map(fusion_of, methods)}
    work |= {method: (name, method, fusion_of(method)) for method in methods}
    work["joint, features"] = (name, "plain", "features")
    found = {side: _apart(arguments) for side, arguments in work.items()}
    return {side: peak for side, peak in found.items() if peak is not None}


def keep_memory() -> None:
    """Keep freed memory for the next side, so that no side pays for getting it from the system."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MAPPED_FROM, 2**25)
    libc.mallopt(_KEPT, 2**31 - 1)


def _apart(arguments: tuple[str, str, str]) -> float | None:
    """The peak in a process of its own, which forks from one that has computed nothing."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(_peak(*arguments)))
    process.start()
    process.join()
    return answers.get() if process.exitcode == 0 else None


def _peak(name: str, method: str, fusion: str) -> float | None:
    """Peak of the steps, or none where the method refuses the task."""
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallopt(_MAPPED_FROM, 2**16)
    libc.mallopt(_MOST_MAPPED, 2**30)
    _warm_up(TASKS[name](fusion, batch=2))
    gc.collect()
    libc.malloc_trim(0)
    before = _kilobytes("VmRSS")
    try:
        _run(TASKS[name](fusion), method)
    except (UserError, ValueError):
        return None
    return (_kilobytes("VmHWM") - before) / 1e3


def _warm_up(task: Task) -> None:
    """Load the pages of libraries, which are not a method's."""
    joint = Balancer(task.parts["task_loss"]())
    with task.bound(joint):
        task.step(joint)


def _run(task: Task, method: str) -> None:
    balancer = task.balancer(method)
    with task.bound(balancer):
        balancer.start_epoch(EPOCHS.get(method, 1))
        # trial copies are gone before the first step
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(2):
            task.step(balancer)


def _kilobytes(field: str) -> int:
    # not ru_maxrss, which a process inherits from the one that started it
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])
