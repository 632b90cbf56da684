"""The folder of one run, and files that are written whole or not at all."""

import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cggm.errors import UserError

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


_DRAFT = ".tmp-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one step: readers see the old content or the new, even after a power cut.

    The block writes to the temporary path it is given, which ends in the name of the file. When the
    block raises, that temporary file is removed and the old file stays.

    Args:
        path: The file to be written; its folder must exist.

    Yields:
        Where to write.
    """
    temporary = path.with_name(f"{_DRAFT}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as a whole, see :func:`replacing`.

    Args:
        path: The file to be written; its folder must exist.
        data: Its content.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def flush_folder(path: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system offers it.

    Args:
        path: The folder.
    """
    if os.name == "posix":
        _flush_to_disk(path, os.O_RDONLY)


def _flush_to_disk(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunFolder:
    """Everything that one run leaves behind.

    Use :meth:`create` for a new run and :meth:`open` for an old one.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path | None, *, name: str) -> "RunFolder":
        """Make the folder of a new run; :meth:`plan` and :meth:`make` in one."""
        run = cls.plan(path, name=name)
        run.make()
        return run

    @classmethod
    def plan(cls, path: Path | None, *, name: str) -> "RunFolder":
        """Choose the folder of a new run, without making it yet.

        Args:
            path: The folder, absent, empty or left by a start that was killed;
                ``runs/<name>-<date>-<time>`` where ``None``.
            name: What runs, such as the data set.

        Raises:
            UserError: If the folder holds something, or cannot be read.
        """
        run = cls(path or _unused(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"))
        try:
            occupied = run.path.exists() and any(map(_is_content, run.path.iterdir()))
        except OSError as error:
            raise _unmakable(run.path, error) from error
        if occupied:
            raise UserError(
                f"{run.path}: expected a new or empty run folder, but it holds files.",
                f"Continue that run with --resume {run.path}, or give another --output.",
            )
        return run

    def make(self) -> None:
        """Make the planned folder, with an empty one for the checkpoints.

        Raises:
            UserError: If it cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unmakable(self.path, error) from error

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Find an existing run, or a group of runs, to resume it or to predict with it.

        Args:
            path: The folder.

        Raises:
            UserError: If that is no run folder.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder.", "Give the folder of a run.")
        parts = [run.config] if any(path.glob("*/config.yaml")) else [run.config, run.checkpoints]
        missing = [part.name for part in parts if not part.exists()]
        if missing:
            raise UserError(
                f"{path}: expected a run folder, but it has no {' and no '.join(missing)}.",
                "Give the folder that a training command printed as its output.",
            )
        return run

    def sweep(self) -> None:
        """Remove what a killed process left half-written; of no use while another one runs."""
        for draft in [*self.path.glob(f"{_DRAFT}*"), *self.curves.glob(f"{_DRAFT}*")]:
            draft.unlink(missing_ok=True)

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Machine, versions and command line, JSON."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Losses and scores, one JSON object per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def balance(self) -> Path:
        """What the balancer saw and did, one JSON object per recorded iteration."""
        return self.path / "balance.jsonl"

    @property
    def gradients(self) -> Path:
        """Last-layer gradients of some batches, see :mod:`cggm.runs.directions`."""
        return self.path / "gradients.npz"

    @property
    def results(self) -> Path:
        """What a finished run came to, JSON."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """What a person looks at, HTML."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        """Folder of the plotted curves."""
        return self.path / "curves"

    def write_environment(self) -> None:
        """Record machine, versions and command line; earlier starts of the run are kept."""
        record = _environment()
        if self.environment.exists():
            earlier = json.loads(self.environment.read_text())
            record["earlier_starts"] = [*earlier.pop("earlier_starts", []), earlier]
        write_atomically(self.environment, (json.dumps(record, indent=2) + "\n").encode())


def _is_content(path: Path) -> bool:
    """Whether a file or folder is more than what a start leaves that was killed at once."""
    if path.name == "checkpoints" and path.is_dir():
        return any(path.iterdir())
    return not path.name.startswith(_DRAFT)


def _unmakable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: the run folder cannot be made ({error.strerror}).",
        "Give another one with --output.",
    )


def _unused(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 1000))
    return next(p for p in (path, *numbered) if not p.exists())


def machine() -> str:
    """The processor and how many cores this process may use, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}"


def _environment() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit() -> str | None:
    """Commit of the source this package was imported from, ``+`` where files were changed."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    where = Path(__file__).parent
    found = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
