"""Errors that a user can mend: shown as one message, exit code 2, never as a traceback."""

import errno
from contextlib import suppress
from pathlib import Path
from textwrap import shorten


class UserError(Exception):
    """A mistake in usage, configuration or data.

    Args:
        what: What was expected and what was found, one sentence.
        fix: What to do about it, one sentence.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} {self.fix}"


def in_one_line(name: str) -> str:
    """A name that may hold anything, with line breaks and the like as Python writes them.

    Args:
        name: The name, such as a file's.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


class MethodRefusal(UserError):
    """A method that cannot serve the network or the task that it was chosen for.

    A comparison lists it as such and goes on; the same method would refuse every seed.
    """


class DataError(UserError):
    """A fault in the user's data.

    Args:
        case: Identifier of the case, or the folder where no case is at fault.
        file: The file at fault, or ``None`` where no single file is.
        what: What was expected and what was found, one sentence.
        fix: What to do about it, one sentence.
    """

    def __init__(self, case: str, file: Path | None, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.case = case
        self.file = file

    def __str__(self) -> str:
        where = self.case if self.file is None else f"{self.case}, {self.file}"
        return f"{in_one_line(where)}: {self.what} {self.fix}"

    def __reduce__(self) -> tuple[type, tuple[str, Path | None, str, str]]:
        return type(self), (self.case, self.file, self.what, self.fix)


_NO_MEMORY = ("allocate memory", "bad_alloc", "not enough memory")  # PyTorch has no code for it
_LEFT = 64 << 20  # bytes below a limit of the process: any further library call may fail


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a processor or a GPU had no memory left.

    Args:
        error: What was raised, by Python, NumPy, PyTorch or the system.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if type(error).__name__ == "OutOfMemoryError" or any(t in str(error) for t in _NO_MEMORY):
        return isinstance(error, RuntimeError)
    # Libraries that compile, link or start threads say anything then, but not why.
    return isinstance(error, RuntimeError | ImportError | SystemError) and _is_at_limit()


def out_of_memory(error: BaseException) -> UserError:
    """What a user is told of an error of :func:`is_out_of_memory`.

    Args:
        error: The error.
    """
    said = str(error).strip().partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2].rstrip(".")
    what = f"Expected more memory than there is: {shorten(said, 200) or 'nothing is left'}."
    return UserError(
        what,
        "Earlier files and the last checkpoint are intact. Raise the limit of the process (ulimit "
        "-v, the container's), end other programs, or, in a training, lower --batch_size.",
    )


def _is_at_limit() -> bool:
    """Whether this process came close to the limit of its address space; Linux alone tells."""
    with suppress(ImportError, OSError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        peak = Path("/proc/self/status").read_text().partition("VmPeak:")[2].split()[0]
        return limit != resource.RLIM_INFINITY and int(peak) * 1024 > limit - _LEFT
    return False
