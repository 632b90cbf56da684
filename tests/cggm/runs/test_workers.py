import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from cggm.errors import UserError
from cggm.runs.workers import map_processes


def square(number):
    return number * number


def process_of(_):
    return os.getpid()


def end(number, at):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_item_has_its_result(workers):
    assert sorted(map_processes(square, range(4), workers)) == [0, 1, 4, 9]
    assert list(map_processes(square, [], workers)) == []


def test_one_worker_is_this_process_and_two_are_others():
    assert set(map_processes(process_of, [1, 2], 1)) == {os.getpid()}
    assert os.getpid() not in set(map_processes(process_of, [1, 2], 2))


def test_killed_worker_is_told_with_its_remedy():
    with pytest.raises(UserError, match=r"one was killed.*fewer workers"):
        list(map_processes(partial(end, at=2), range(4), 2))


def test_script_without_main_guard_is_told_once_what_is_missing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\n"
        "from cggm.errors import UserError\n"
        "from cggm.runs import map_processes\n"
        "try:\n    print(list(map_processes(operator.neg, [1, 2, 3], 2)))\n"
        "except UserError as error:\n    print('error:', error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("error:") == 1
    assert 'if __name__ == "__main__"' in done.stdout
    assert "memory" not in done.stdout
    assert "Traceback" not in done.stderr
