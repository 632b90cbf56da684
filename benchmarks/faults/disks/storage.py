"""A disk that fails at random instants of a training and of a prediction, for the rest of them.

The kernel refuses the system calls, see system_calls.py, and cuts files short at a limit of their
size. Processes are forks, see forked.py. A disk that has become read-only keeps the draft that was
under way, which no reader sees and the next checkpoint removes.
"""

import resource
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.faults.processes.child import in_child
from benchmarks.faults.processes.system_calls import FAULTS, refuse

_CUT = "files cut short"
_ALL_FAULTS = (*FAULTS, _CUT)
_QUICK_FAULTS = ("no space", "I/O error of write", _CUT)
_PEERS_LIMIT = 20_000  # bytes, less than their files
_STAYS = "read-only"
WORKS = ("saving", "predicting")


def measure(quick: bool) -> dict[str, Any]:
    figures = in_child(_measure, 1 if quick else 3, quick)
    ours = [figures[work][fault] for work in WORKS for fault in figures[work]]
    figures["cut"] = "for time: 3 rounds where earlier runs had 5"
    return {
        "bar": "nothing partial is visible, exit code 2 and one message; the last checkpoint loads "
        "and goes on to the bytes of the undisturbed run",
        "holds": all(
            counts["good"] == counts["hit"] and counts["unlike the undisturbed run"] == 0
            for counts in ours
        )
        and sum(counts["hit"] for counts in ours) > 0,
        "figures": figures,
    }


def row(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    counts = [found for work in WORKS for found in figures[work].values()]
    good, hit = (sum(found[kind] for found in counts) for kind in ("good", "hit"))
    peers = [peer for peer in figures if peer not in (*WORKS, "cut")]
    lost = [f"{peer} {_lost(figures[peer])}" for peer in peers]
    return (
        "no space, quota, I/O errors, read-only, in training and prediction",
        f"{good} of {hit}: one message, the last checkpoint loads, no partial output",
        f"last checkpoint lost: {', '.join(lost)}",
    )


def _lost(outcomes: Mapping[str, str]) -> str:
    numbers = [text.removeprefix("lost ").split(" of ") for text in outcomes.values()]
    return "{} of {}".format(*(sum(int(pair[side]) for pair in numbers) for side in (0, 1)))


def _measure(rounds: int, quick: bool) -> dict[str, Any]:
    from benchmarks.faults.disks.peers import PEERS, losses
    from benchmarks.faults.disks.work import Predicting, Saving

    faults = _QUICK_FAULTS if quick else _ALL_FAULTS
    with TemporaryDirectory() as name:
        works = {"saving": Saving(Path(name)), "predicting": Predicting(Path(name), quick)}
        figures: dict[str, Any] = {
            what: {fault: _fail(work, fault, rounds) for fault in faults}
            for what, work in works.items()
        }
        for peer, save in PEERS.items():
            figures[peer] = {
                fault: losses(Path(name), save, partial(strike, fault), rounds) for fault in faults
            }
    return figures


def _fail(work: Any, fault: str, rounds: int) -> dict[str, int]:  # noqa: ANN401
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for number in range(rounds):
        folder = work.folder / f"{fault.replace('/', '-')}-{number}"
        seconds = float(rng.uniform(0.1, 0.8)) * work.seconds
        size = int(rng.integers(100, work.smallest))
        code, said = work.disturbed(folder, partial(_later, seconds, partial(strike, fault, size)))
        hit = code != 0
        one = code == 2 and said.count("error: ") == 1 and "Traceback" not in said
        counts["hit"] += hit
        counts["one message"] += hit and one
        counts["whole"] += hit and work.is_whole(folder)
        counts["temporary files left"] += hit and work.leaves(folder)
        clean = fault == _STAYS or not work.leaves(folder)
        counts["good"] += hit and one and work.is_whole(folder) and clean
        counts["unlike the undisturbed run"] += not work.goes_on(folder)
    kinds = ("hit", "one message", "whole", "temporary files left")
    return {kind: counts[kind] for kind in (*kinds, "good", "unlike the undisturbed run")}


def strike(fault: str, size: int = _PEERS_LIMIT) -> None:
    """Let the disk fail from now on, for this process."""
    if fault == _CUT:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    else:
        refuse(FAULTS[fault])


def _later(seconds: float, action: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: action())
    signal.setitimer(signal.ITIMER_REAL, seconds)
