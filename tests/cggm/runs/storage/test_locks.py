"""Who writes in a folder, writes there alone."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys

import pytest

from cggm.errors import UserError
from cggm.runs.storage import locks
from cggm.runs.storage.locks import LOCK, check_free, hold, holding, let_go, let_go_of_all

HOLDER = """
import sys, time
from pathlib import Path
from cggm.runs.storage.locks import hold
hold(Path(sys.argv[1]), "a training")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_it_and_a_kill_frees_it(tmp_path, holder):
    for refused in (lambda: hold(tmp_path, "a training"), lambda: check_free(tmp_path)):
        with pytest.raises(UserError) as caught:
            refused()
        assert re.match(
            rf"{re.escape(str(tmp_path))}: a training, process {holder.pid} on \S+ since 20\S+, "
            "still writes there. Wait until it ends",
            str(caught.value),
        )
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    check_free(tmp_path)
    let_go(tmp_path, hold(tmp_path, "a training"))


def test_one_process_may_take_it_several_times(tmp_path):
    with holding(tmp_path, "a training") as descriptor:
        assert os.fstat(descriptor).st_ino == (tmp_path / LOCK).stat().st_ino
        with holding(tmp_path, "a training"):
            pass
        assert taken(tmp_path)
    assert not taken(tmp_path)
    assert not (tmp_path / LOCK).exists()
    check_free(tmp_path / "absent")


def test_a_file_that_its_holder_removes_locks_nobody(tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def removed_meanwhile(descriptor, how):
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with holding(tmp_path, "a training") as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / LOCK).stat())
        assert taken(tmp_path)
    assert removed == [None]


def taken(folder):
    code = "import sys; from pathlib import Path; from cggm.runs.storage.locks import check_free; "
    code += "check_free(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    return done.returncode == 1 and "still writes there" in done.stderr


def test_a_forked_child_does_not_keep_it(tmp_path):
    number = hold(tmp_path, "a training")
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        let_go(tmp_path, number)
        assert not taken(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    number = hold(tmp_path, "a training")
    assert "has no locks (No locks available): start nothing else there" in capsys.readouterr().err
    let_go(tmp_path, number)
    monkeypatch.setattr(locks, "fcntl", None)
    hold(tmp_path, "a training")
    check_free(tmp_path)


def test_a_damaged_note_of_the_holder_is_no_obstacle(tmp_path, holder):
    (tmp_path / LOCK).write_text("[" * 100_000)
    with pytest.raises(UserError, match="another process still writes there"):
        hold(tmp_path, "a training")


def test_a_late_holder_lets_go_of_its_own_hold_alone(tmp_path):
    first = hold(tmp_path, "a training")
    let_go_of_all()
    assert not (tmp_path / LOCK).exists()
    second = hold(tmp_path, "a training")
    let_go(tmp_path, first)
    assert taken(tmp_path)
    let_go(tmp_path, second)
    assert not taken(tmp_path)
