"""A cluster of one node: munge, SLURM's controller and its daemon, with all files in one folder."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def is_installed() -> bool:
    """Whether the daemons are there, and this user may start them."""
    return os.geteuid() == 0 and None not in map(_daemon, DAEMONS)


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; gives the environment in which SLURM's commands find them."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    host = socket.gethostname().partition(".")[0]
    controller, daemon = _free_port(), _free_port()
    config = CONFIG.format(host=host, folder=folder, controller=controller, daemon=daemon)
    (folder / "slurm.conf").write_text(config)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"seed-file": folder / "munge.seed", "log-file": folder / "munge.log"}
    munge = [f"--{option}={file}" for option, file in files.items()]
    commands = (
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-N", host],
    )
    with ExitStack() as stack:
        for words in commands:
            stack.enter_context(_running(words, folder, environment))
        _wait_for_node(environment)
        yield environment


def _daemon(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def _running(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    program = _daemon(words[0])
    assert program is not None
    with (folder / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *words[1:]], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        if words[0] == "munged":
            _wait_for((folder / "munge.socket").exists)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _wait_for(condition, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "SLURM did not start"
        time.sleep(0.1)


def _wait_for_node(environment: dict[str, str]) -> None:
    def idle() -> bool:
        words = ["sinfo", "--noheader", "--format=%T"]
        found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return found.stdout.strip() == "idle"

    _wait_for(idle)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with cluster(where) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        time.sleep(float(sys.argv[2]))
