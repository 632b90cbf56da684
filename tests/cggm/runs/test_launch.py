"""Two real processes, started as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cggm.errors import UserError
from cggm.runs import launch as ranks
from cggm.runs.launch import check_ranks_agree, joined, ranked, same_output, share_of_batch
from cggm.runs.loop.replicas import replicated
from cggm.runs.options import RunOptions
from tests.cggm.networks import make_late
from tests.cggm.runs.ranks_worker import trained


def run_two(*argv):
    """Exit code, output and errors of each rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.cggm.runs.ranks_worker", *map(str, argv)]
    processes = [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **common, "RANK": str(k), "LOCAL_RANK": str(k)},
        )
        for k in (0, 1)
    ]
    said = [process.communicate(timeout=240) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    results = run_two("look", folder)
    assert [code for code, *_ in results] == [0, 0], results
    assert [out for _, out, _ in results] == ["rank 0 prints\n", ""]
    return [json.loads((folder / f"{k}.json").read_text()) for k in (0, 1)]


def test_uneven_shares_come_back_in_order(found):
    for rank in found:
        assert rank["uneven"] == [0, 1, 2, 3, 4]
        assert rank["too few"] == ["only"]
        assert rank["largest"] == 7


def test_ranks_that_differ_are_refused_on_all(found):
    for rank in found:
        assert rank["alike"] == ""
        assert rank["differing"].startswith(
            "Expected the same data on all ranks, but rank 1 differs from rank 0."
        )


def test_batch_is_shared_evenly_or_refused(found):
    for rank in found:
        assert rank["share"] == 4
        assert "multiple of 2 and at least 2, because 2 ranks" in rank["odd"]
        assert "Give --batch_size 10," in rank["odd"]
        assert "at least 4" in rank["small"]
        assert "Give --batch_size 4," in rank["small"]


def test_first_rank_makes_what_the_others_find(found):
    assert [rank["first"] for rank in found] == [4, True]


def test_draws_differ_between_ranks_and_steps_and_are_repeated(found):
    first, second = (rank["draws"] for rank in found)
    assert len({*first, *second}) == 12
    assert [rank["again"] for rank in found] == [first, second]


def test_two_ranks_end_where_one_process_does(found):
    _, alone = trained(epochs=50)
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["weights"] == pytest.approx(alone, abs=1e-5)


def test_one_differing_coefficient_ends_the_training_at_the_end_of_the_epoch(found):
    for rank in found:
        assert "Expected the same coefficients" in rank["spoilt"]
        assert "on all ranks after epoch 2, but rank 1 differs" in rank["spoilt"]


def test_one_differing_state_ends_the_training_at_the_end_of_the_epoch(found):
    for rank in found:
        assert "Expected the same state of the method" in rank["moved"]
        assert "on all ranks after epoch 2, but rank 1 differs" in rank["moved"]


def test_rank_without_foreground_takes_part(found):
    assert found[0]["background"] == found[1]["background"]


def test_error_of_a_rank_whose_others_are_there_is_its_own(tmp_path):
    for number, (code, _, said) in enumerate(run_two("fault", tmp_path)):
        assert code == 1
        assert f"RuntimeError: of rank {number} alone" in said


@pytest.mark.parametrize("what", ["fail", "backward"])
def test_mistake_of_one_rank_ends_the_others_soon(tmp_path, what):
    started = time.monotonic()
    first, second = run_two(what, tmp_path)
    assert second == (2, "", "error: Only rank 1 found this. Mend it.\n")
    assert first[0] == 2
    assert "error: Rank 0 lost the connection to another rank." in first[2]
    assert "Traceback" not in first[2]
    assert time.monotonic() - started < 120


def test_process_that_runs_alone_is_left_alone():
    network, _ = make_late()
    options = RunOptions()
    with joined("cpu") as device:
        assert device.type == "cpu"
        assert replicated(network, sync_batchnorm=True) is network
        assert same_output(options, "run") is options
        assert share_of_batch(9) == 9
        check_ranks_agree({"data": 1})


def test_other_ranks_print_nothing_and_wait_before_they_complain(monkeypatch, capsys):
    waited = []

    def main(argv):
        print("hello")
        raise UserError("Wrong.", "Mend it.")

    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    for number, (printed, seconds) in enumerate([("hello\n", []), ("", [10.0])]):
        monkeypatch.setenv("RANK", str(number))
        with pytest.raises(UserError):
            ranked(main)([])
        assert capsys.readouterr().out == printed
        assert waited == seconds


@pytest.mark.parametrize(("ranks", "taken_down"), [(1, ["taken down"]), (2, [])])
def test_a_rank_ends_what_is_left_to_do_and_not_the_interpreter(ranks, taken_down):
    program = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from cggm.runs import end_process, ranked, run

class Held:
    def __del__(self, write=sys.__stdout__.write, flush=sys.__stdout__.flush):
        write("taken down\\n")
        flush()

sys.held = Held()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
pool = ThreadPoolExecutor(1)
pool.submit(print, "pool")
end_process(run(ranked(lambda argv: 3), []))
"""
    environment = {**os.environ, "WORLD_SIZE": str(ranks), "RANK": "0"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    said = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr) == (3, "")
    assert said == ["pool", "thread", "registered", *taken_down]


def test_a_rank_that_prints_nothing_needs_no_locale():
    program = "from cggm.runs import ranked, run; "
    program += "raise SystemExit(run(ranked(lambda argv: print('Gr\\xf6\\xdfe \\u2502'))))"
    plain = {"RANK": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
