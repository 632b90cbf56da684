import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from cggm.runs.cli import run
from cggm.runs.loop.signals import SIGNALS, Stopped, StopSignals, ignore_signals

ROOT = Path(__file__).parents[4]


def send(number):
    os.kill(os.getpid(), number)


def hear_all():
    """What is ignored here, as a shell makes background jobs ignore Ctrl-C, is heard again."""
    for number in SIGNALS:
        interrupt = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, interrupt)


@pytest.fixture(autouse=True)
def all_signals():
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    hear_all()
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_noted_and_handlers_are_restored(number, capfd):
    before = [signal.getsignal(n) for n in SIGNALS]
    signals = StopSignals()
    with signals:
        assert signals.requested() is None
        send(number)
        assert signals.requested() == number
    assert [signal.getsignal(n) for n in SIGNALS] == before
    said = "\nfinishing this step to save it; Ctrl-C again leaves at once\n"
    assert capfd.readouterr().err == (said if number == signal.SIGINT else "")
    with signals:
        assert signals.requested() is None


def test_second_interrupt_leaves_at_once_and_another_signal_does_not():
    for first in SIGNALS:
        with StopSignals() as signals:
            send(first)
            send(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
            assert signals.requested() == first


def test_what_may_be_left_is_left_in_the_middle_or_not_begun():
    reached = []

    def function():
        reached.append("begun")
        send(signal.SIGTERM)
        reached.append("ended")

    with StopSignals() as signals:
        assert signals.unless_requested(lambda: 3) == 3
        assert signals.unless_requested(function) is None
        assert reached == ["begun"]
        assert signals.unless_requested(lambda: 3) is None
        send(signal.SIGTERM)
    assert reached == ["begun"]


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        send(signal.SIGHUP)
        assert signals.requested() is None
        assert signal.getsignal(signal.SIGTERM) == signals._note
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_set_no_handlers():
    failures = []

    def enter():
        try:
            with StopSignals() as signals:
                assert signals.requested() is None
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []


def test_ignored_signals_end_no_process():
    pid = os.fork()
    if pid == 0:
        ignore_signals(0)
        for number in SIGNALS:
            send(number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("number", SIGNALS)
def test_command_says_how_to_continue(number, capsys):
    def main(argv):
        raise Stopped(number, "step 7, 2 epochs completed", Path("runs/a"))

    assert run(main, []) == 128 + number
    assert capsys.readouterr().err == (
        f"{signal.Signals(number).name}: saved step 7, 2 epochs completed; continue with "
        "--resume runs/a\n"
    )


SCRIPT = """
import os, signal
from cggm.runs.cli import run
from cggm.runs.loop.signals import StopSignals

def main(argv):
    with StopSignals():
        pass
    os.kill(os.getpid(), getattr(signal, argv[0]))

import sys
raise SystemExit(run(main))
"""


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("SIGINT", 130, "interrupted\n"), ("SIGTERM", -15, ""), ("SIGHUP", -1, "")],
)
def test_outside_of_a_training_signals_act_as_ever(name, code, said):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env={"PYTHONPATH": str(ROOT)},
        preexec_fn=hear_all,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)
