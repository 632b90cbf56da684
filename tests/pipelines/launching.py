"""Two ranks of a command, or of several, as torchrun starts them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.pipelines.commands import ROOT

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
WORKER = Path(__file__).with_name("torchrun_worker.py")


def launch(script: Path | str, *argv: object) -> "subprocess.Popen[str]":
    """Start two ranks of a script."""
    return _start(*LAUNCHER, script, *argv)


def launch_ranks(restarts: int, *words: object) -> "subprocess.Popen[str]":
    """Start two ranks of a command by the project's own launcher."""
    options = ("--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}")
    return _start(sys.executable, ROOT / "pipelines" / "ranks.py", *options, *words)


def _start(*command: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*map(str, command)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def run_all(*commands: Sequence[object]) -> tuple[int, str, str]:
    """Run commands on two ranks; returns the exit code and what they said."""
    process = launch(WORKER, json.dumps([[str(word) for word in words] for words in commands]))
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.terminate()  # which ends the ranks as well
    return process.returncode, out, err
