"""Errors that a user can mend: shown as one message, exit code 2, never as a traceback."""

from pathlib import Path


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
