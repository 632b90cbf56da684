"""The environment of a run: machine, versions of software and command line."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cggm import __version__

_PACKAGES = (
    "cggm",
    "torch",
    "torchvision",
    "numpy",
    "pytorch-ignite",
    "monai",
    "segmentation-models-pytorch",
    "albumentations",
    "nibabel",
    "transformers",
)


def machine() -> str:
    """The processor and how many cores this process may use, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {processor()}"


def group_of_ranks() -> str | None:
    """What tells a group of ranks from others, also after it was started again by torchrun.

    ``None`` for a process that torchrun did not start.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    # torchrun's default; the process that started this rank then tells groups apart.
    return f"{platform.node()}:{os.getppid()}" if name == "none" else name


def environment() -> dict[str, Any]:
    """Machine, versions and command line of this process, JSON values."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(),
        "group": group_of_ranks(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": processor(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    if package == "cggm":
        return __version__
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit() -> str | None:
    """Commit of the source this package was imported from, ``+`` where files were changed."""
    git = shutil.which("git")
    checkout = (Path(__file__).parents[2] / ".git").exists()
    if git is None or not checkout:  # installed within somebody else's repository, perhaps
        return None
    command = [git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    where = Path(__file__).parent
    found = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def processor() -> str:
    """Name of the processor's model."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
