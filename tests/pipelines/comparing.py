"""The comparison on tiny networks, as a function and as a process."""

import os
import subprocess
import sys
import time
from pathlib import Path

from cggm.runs.cli import run
from pipelines import compare

TINY = """
max_epochs: 5
batch_size: 256
subsets: false
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
optimizer: {lr: 0.01, head_lr: 0.01}
"""


def tiny_config(folder):
    """Writes a configuration that trains in seconds."""
    file = folder / "tiny.yaml"
    file.write_text(TINY)
    return file


def call(*argv):
    """Compares in this process; returns the exit code."""
    return run(compare.main, [str(argument) for argument in argv])


def start(*argv):
    """Compares in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, compare.__file__, *map(str, argv)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def group_lives(process):
    """Whether a process that it started is left, other than as a zombie."""
    stats = [stat for path in Path("/proc").glob("[0-9]*") if (stat := read(path / "stat"))]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return any(int(field[2]) == process.pid and field[0] != "Z" for field in fields)


def read(path):
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
