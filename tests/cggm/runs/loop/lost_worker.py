"""Trainings that lose a loader worker."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from ignite.engine import Engine
from torch.utils.data import Dataset

from cggm.runs.cli import run
from cggm.runs.loop.loading import CaseLoader
from cggm.runs.loop.sampling import EndlessBatches, EpochSampler

CASES = [f"case{number}" for number in range(8)]
BAD = CASES[5]
WAYS = ("while waiting", "during a step", "between cases")
UNSENT, HALF = "could not be sent", "broke off on its way"
SLOW = 60  # seconds of a step that the report has to interrupt


class Cases(Dataset):
    """Cases of which one does something to its reader."""

    def __init__(self, deed=lambda: None):
        self.deed = deed

    def __len__(self):
        return len(CASES)

    def __getitem__(self, index):
        epoch, position = index
        if CASES[position] == BAD:
            self.deed()
        return {"epoch": epoch, "value": torch.tensor(position), "case": CASES[position]}


class Pair(NamedTuple):
    """A batch that cannot be pickled."""

    value: torch.Tensor

    def __reduce__(self):
        raise OSError("too many open files")


class Unsendable(Cases):
    """Cases of which no batch can leave its worker."""

    def __getitem__(self, index):
        return Pair(super().__getitem__(index)["value"])


def torn(worker):
    """A batch whose worker ended before it was taken over."""
    os.kill(worker, signal.SIGKILL)
    raise EOFError


class Half(NamedTuple):
    """A batch that cannot be taken over."""

    value: torch.Tensor

    def __reduce__(self):
        return torn, (os.getpid(),)


class Torn(Cases):
    """Cases whose batches break off on their way."""

    def __getitem__(self, index):
        return Half(super().__getitem__(index)["value"])


def batches():
    return EndlessBatches(EpochSampler(len(CASES)), 2)


def loader(deed=lambda: None, workers=0):
    return CaseLoader(Cases(deed), batches(), name=CASES.__getitem__, workers=workers)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def take_time(engine, batch):
    end = time.monotonic() + SLOW
    while time.monotonic() < end:
        time.sleep(0.01)


def lose_an_idle_worker(engine, batch, data):
    time.sleep(1)  # it has read ahead all it may
    os.kill(int(data._reading[0, 0]), signal.SIGKILL)


def main(argv):
    [way] = argv
    if way in (UNSENT, HALF):
        cases = Unsendable() if way == UNSENT else Torn()
        data = CaseLoader(cases, batches(), name=CASES.__getitem__, workers=1)
        engine = Engine(lambda engine, batch: None)
    elif way == "between cases":
        data = loader(workers=1)
        engine = Engine(lambda engine, batch: lose_an_idle_worker(engine, batch, data))
    else:
        data = loader(kill_itself, workers=2)
        engine = Engine(take_time if way == "during a step" else lambda engine, batch: None)
    engine.logger.disabled = True
    if way == HALF:
        # PyTorch tells the main thread of a worker's death, and no other one
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(list, data).result()
        return
    with data.naming_lost_cases():
        engine.run(data, max_epochs=1, epoch_length=50)


def train_as_a_process(way, file):
    """Train with standard error in a file, and end as a command does."""
    with file.open("w") as sys.stderr:
        code = run(main, [way])
    os._exit(code)
