"""A loader names the case whose reader was killed, or that cannot be read."""

import os
import signal
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cggm.errors import DataError, UserError
from cggm.runs.loop.loading import CaseLoader
from tests.cggm.runs.loop.lost_worker import (
    BAD,
    CASES,
    HALF,
    SLOW,
    UNSENT,
    WAYS,
    Cases,
    batches,
    loader,
    train_as_a_process,
)


def data_error():
    raise DataError(BAD, Path("a.nii"), "Expected 1, but found 2.", "Repair it.")


def fault():
    return {}["nothing"]


def first(data, count=8):
    return [batch for _, batch in zip(range(count), data, strict=False)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_plain_loader(workers):
    expected = first(DataLoader(Cases(), batch_sampler=batches()))
    found = first(loader(workers=workers))
    for one, other in zip(found, expected, strict=True):
        assert one["case"] == other["case"]
        assert torch.equal(one["value"], other["value"])
        assert torch.equal(one["epoch"], other["epoch"])


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """What a training says that lost a worker, and its exit code, by the way it lost it."""
    start, folder = time.monotonic(), tmp_path_factory.mktemp("lost")
    fork = get_context("fork")  # so that nothing is imported anew
    files = {way: folder / way for way in WAYS}
    processes = {
        way: fork.Process(target=train_as_a_process, args=(way, files[way])) for way in WAYS
    }
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join()
    assert time.monotonic() - start < SLOW
    return {way: (files[way].read_text(), process.exitcode) for way, process in processes.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_worker_is_reported_in_one_line_with_its_case(way, lost):
    message, code = lost[way]
    assert code == 2
    assert message.count("\n") == 1, message
    doing = "between two cases" if way == "between cases" else f"while it read {BAD}"
    assert message.startswith("error: A loader worker ")
    assert "was killed by SIGKILL" in message
    assert f" {doing}. Often memory ran out: give fewer --workers" in message


def refused(way, folder):
    """What a training says that ends with the exit code of a user's mistake."""
    file = folder / "said"
    process = get_context("fork").Process(target=train_as_a_process, args=(way, file))
    process.start()
    process.join(60)
    assert process.exitcode == 2
    return file.read_text()


def test_a_batch_that_cannot_be_sent_ends_the_training(tmp_path):
    first, last = refused(UNSENT, tmp_path).splitlines()
    assert first == "error: A loader worker could not send a batch: too many open files."
    assert last.startswith("error: A loader worker could not send a batch that it had put together")


def test_a_batch_that_broke_off_on_its_way_is_no_end_of_the_data(tmp_path):
    assert "was killed by SIGKILL" in refused(HALF, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_arrives_as_it_was_raised(workers):
    with pytest.raises(DataError) as caught:
        first(loader(data_error, workers))
    assert str(caught.value) == f"{BAD}, a.nii: Expected 1, but found 2. Repair it."
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("workers", [0, 2])
def test_any_other_error_names_the_case_and_keeps_the_traceback(workers):
    with pytest.raises(DataError) as caught:
        first(loader(fault, workers))
    assert str(caught.value).startswith(f"{BAD}: Expected to read this case, but got KeyError")
    assert "Traceback" not in str(caught.value)
    assert 'return {}["nothing"]' in str(caught.value.__cause__)


def test_an_error_of_the_training_itself_passes():
    data = loader()
    with pytest.raises(RuntimeError, match="of my own"), data.naming_lost_cases():
        raise RuntimeError("of my own")


def test_a_batch_that_cannot_be_put_together_is_one_message():
    for workers, where in ((0, ""), (1, " in shared memory")):
        ragged = CaseLoader(Ragged(), batches(), name=str, workers=workers)
        with pytest.raises(UserError) as caught:
            first(ragged)
        message = str(caught.value)
        assert message.startswith(f"A loader could not put a batch together{where}: stack expects")
        assert "Traceback" not in message
        assert ("--workers 0" in message) == bool(workers)


class Stuck(Cases):
    """Cases that are never read, but for those of the first batch."""

    def __getitem__(self, index):
        if index not in next(iter(batches())):
            time.sleep(600)
        return super().__getitem__(index)


def test_workers_that_ignore_signals_end_with_the_block():
    data = CaseLoader(Stuck(), batches(), name=CASES.__getitem__, workers=2)
    with data.naming_lost_cases():
        reading = iter(data)
        next(reading)
        workers = data._workers
        end = time.monotonic() + 60
        while (data._reading[:, 0] < 0).any() and time.monotonic() < end:
            time.sleep(0.01)  # until both have begun to read
        assert [worker.is_alive() for worker in workers] == [True, True]
        for worker in workers:
            worker.terminate()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2
    subprocess.run(["true"], check=True)  # its end raises nothing of PyTorch's here


def test_a_need_of_shared_memory_that_is_hardly_there_is_said(monkeypatch, capsys):
    class Little:
        f_bavail, f_frsize = 1, 16

    monkeypatch.setattr(os, "statvfs", lambda path: Little)
    first(loader(workers=1), 1)
    said = capsys.readouterr().err
    assert "of which 0 MB are free. Give --workers 0" in said
    first(loader(workers=0), 1)
    assert capsys.readouterr().err == ""


class Ragged(Cases):
    """Cases of different sizes."""

    def __getitem__(self, index):
        return torch.zeros(1 + index[1])
