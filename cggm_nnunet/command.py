"""Sub-commands of ``nnunet``: where trainers lie, data in and out, subsets of modalities."""

from collections.abc import Sequence
from pathlib import Path

from cggm.errors import UserError

TRAINERS = Path(__file__).parent / "trainers"


def main(argv: Sequence[str]) -> int | None:
    """Run a sub-command.

    Args:
        argv: Its name and its options.

    Returns:
        The exit code, or nothing for 0.

    Raises:
        UserError: If there is no sub-command of that name, or an option is wrong.
    """
    commands = {"path": _path}
    name = argv[0] if argv else ""
    if name not in commands:
        raise UserError(
            f"Expected a sub-command of nnunet, but got {name!r}.",
            f"Give one of {', '.join(commands)}.",
        )
    commands[name](argv[1:])
    return None


def _path(argv: Sequence[str]) -> None:
    print(TRAINERS)
