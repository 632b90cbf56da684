"""Nothing is sent: every pipeline runs where each attempt to reach another machine fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.commands import ROOT

GUARD = Path(__file__).parent / "offline"


@pytest.fixture
def attempts(tmp_path):
    """Runs Python without a network; returns what it and its children tried, and its output."""

    def run(*arguments):
        log = tmp_path / "attempts"
        path = os.pathsep.join([str(GUARD), str(ROOT)])
        environment = {"PYTHONPATH": path, "CGGM_NETWORK_LOG": str(log), "OMP_NUM_THREADS": "1"}
        # Whoever switches the network off by these hides what would be tried without them.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        found = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**kept, **environment},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        tried = log.read_text().splitlines() if log.exists() else []
        return tried, found

    return run


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
        "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import socket; socket.create_connection((\"192.0.2.1\", 80))'], check=True)",
    ],
)
def test_the_guard_notes_what_leaves(code, attempts):
    tried, found = attempts("-c", code)
    assert found.returncode == 1
    assert len(tried) >= 1


def test_the_guard_lets_processes_of_this_machine_talk(attempts):
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(s.getsockname()); a, b = socket.socketpair()"
    )
    tried, found = attempts("-c", code)
    assert (tried, found.returncode) == ([], 0), found.stderr


@pytest.mark.slow
def test_no_pipeline_tries_to_reach_another_machine(attempts, tmp_path):
    tried, found = attempts("-m", "tests.pipelines.offline_run", tmp_path)
    assert found.returncode == 0, found.stderr
    assert tried == []
    for made in ("scores.json", "mfeat-run/results.json", "comparison/comparison.md"):
        assert (tmp_path / made).is_file()
