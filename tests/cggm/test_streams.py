"""What a command prints goes nowhere, quietly, once nobody reads it."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cggm.commands.streams import LastingStream, lasting_streams

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from cggm.runs import run

def main(argv):
    for number in range(20000):
        print("a line that fills the pipe", number)
        print("another", file=sys.stderr)
    sys.stdout.flush()
    open(argv[0], "w").write("done")

raise SystemExit(run(main))
"""


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_leaves_does_not_end_it(tmp_path, closed):
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    streams |= {closed: subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "end")]
    with subprocess.Popen(command, **streams) as process:
        getattr(process, closed).close()
        said = b"" if closed == "stderr" else process.stderr.read()
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "done"
    assert set(said.splitlines()) <= {b"another"}


@pytest.mark.parametrize(
    "words",
    [("pipelines/mosi_train.py", "--help"), ("-m", "cggm"), ("-m", "cggm", "--completion", "bash")],
)
def test_help_into_a_closed_pipe_is_quiet(words):
    command = [sys.executable, *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_closed_terminal_does_not_end_it():
    ours, theirs = pty.openpty()
    stream = LastingStream(os.fdopen(theirs, "w"))
    os.close(ours)
    stream.write("x" * 100_000)
    stream.flush()
    stream.writelines(["y"] * 3)
    assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == os.devnull


def test_files_do_not_get_the_numbers_of_streams_that_are_missing(tmp_path):
    program = """
import os, subprocess, sys
from cggm.runs import run

def main(argv):
    with open(argv[0], "w") as file:
        print("said")
        print("said", file=sys.stderr)
        os.write(2, b"of a library")
        file.write(str(file.fileno() > 2))
        code = "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"
        file.write(str(subprocess.run([sys.executable, "-c", code]).returncode))

raise SystemExit(run(main))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    script = 'exec "$@" <&- >&- 2>&-'
    ended = subprocess.run(["bash", "-c", script, "bash", *command], check=False)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "True0"


def test_a_full_disk_is_still_an_error():
    stream = LastingStream(open("/dev/full", "w"))  # noqa: SIM115
    stream.write("x")
    with pytest.raises(OSError, match="No space"):
        stream.flush()


def test_an_ascii_terminal_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with lasting_streams():
        print("Größe │")
    assert raw.getvalue() == b"Gr\\xf6\\xdfe \\u2502\n"
    assert isinstance(sys.stdout, io.TextIOWrapper)
