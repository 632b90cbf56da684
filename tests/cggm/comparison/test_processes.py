"""Scripts in processes that share imports behave as scripts that were started by hand."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from cggm.comparison.processes import Script, share_imports
from cggm.errors import MethodRefusal
from cggm.runs.cli import read_reported_error

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from multiprocessing import get_start_method
print("loaded" if "colorsys" in sys.modules else "not loaded", get_start_method(), __name__)
print(sys.argv[1:], file=sys.stderr)
raise SystemExit(3)
"""


@pytest.fixture
def script(tmp_path):
    forkserver._forkserver._stop()  # that of an earlier test
    share_imports(["colorsys", "no_such_module"], threads=1)
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return file


def started(script, log, *, inherited):
    return Script(script, [], log, inherited=inherited, error_file=log.with_suffix(".json"))


def ended(process):
    while (code := process.poll()) is None:
        time.sleep(0.01)
    return code


def test_output_goes_to_the_log_and_the_code_comes_back(script, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open() as kept:
        assert ended(started(script, log, inherited=kept.fileno())) == 3
    assert log.read_text().splitlines()[0] == "before"
    assert {"loaded fork __main__", "[]"} <= set(log.read_text().splitlines())


COUNTS = """
import signal, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
print("ready", flush=True)
end = time.monotonic() + 0.5
while time.monotonic() < end or not got:
    time.sleep(0.01)
raise SystemExit(len(got))
"""


REFUSES = """
from cggm.errors import MethodRefusal
from cggm.runs.cli import run

def main(argv):
    raise MethodRefusal("OGM cannot be used here: no.", "Take another.")

raise SystemExit(run(main))
"""


def test_error_travels_as_data(script, tmp_path):
    script.write_text(REFUSES)
    with script.open() as kept:
        assert ended(started(script, tmp_path / "log", inherited=kept.fileno())) == 2
    error = read_reported_error(tmp_path / "log.json")
    assert isinstance(error, MethodRefusal)
    assert (error.what, error.fix) == ("OGM cannot be used here: no.", "Take another.")


def test_is_asked_to_end_once(script, tmp_path):
    script.write_text(COUNTS)
    log = tmp_path / "log"
    with script.open() as kept:
        process = Script(
            script, [], log, inherited=kept.fileno(), error_file=tmp_path / "error.json"
        )
    while not log.exists() or "ready" not in log.read_text():
        time.sleep(0.01)
    for _ in range(3):
        process.terminate()
        time.sleep(0.05)
    assert ended(process) == 1


def test_descriptor_is_open_in_the_script(script, tmp_path):
    script.write_text("import time\ntime.sleep(60)\n")
    read, write = os.pipe()
    process = Script(
        script, [], tmp_path / "log", inherited=write, error_file=tmp_path / "error.json"
    )
    os.close(write)
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    process.terminate()
    assert ended(process) == -15
    assert os.read(read, 1) == b""
    os.close(read)


MASK = """
import signal
from cggm.comparison import processes

def show(queue):
    queue.put(signal.pthread_sigmask(signal.SIG_BLOCK, set()))

if __name__ == "__main__":
    processes.share_imports((), threads=1)
    queue = processes._CONTEXT.SimpleQueue()
    processes._CONTEXT.Process(target=show, args=(queue,)).start()
    print(queue.get(), signal.pthread_sigmask(signal.SIG_BLOCK, set()))
"""


def test_an_interrupt_waits_until_a_script_runs(tmp_path):
    """Ctrl-C goes to the whole group: before that it would end in a traceback of the server's."""
    file = tmp_path / "mask.py"
    file.write_text(MASK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=True, env=environment
    )
    assert said.stdout == f"{ {signal.SIGINT} } set()\n"
