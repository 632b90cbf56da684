"""Scripts that are commands, and how the user called the one that runs.

A command is a script of the folder ``pipelines``, which lies beside the packages in a checkout and
in ``cggm_commands`` where a wheel was installed: the same files either way. Its words are those of
the file's name, so that a new script is a command without a line anywhere. Other packages mount
commands of their own by entry points of the group ``cggm.commands``.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cggm.errors import UserError

Words = tuple[str, ...]
GROUP = "cggm.commands"
_called_as: Words = ()


def scripts_folder() -> Path:
    """The folder of the scripts; that of their configurations lies beside it.

    Raises:
        UserError: Where the installation lacks it.
    """
    root = Path(__file__).parents[2]
    # Another distribution may have put a folder `pipelines` into site-packages.
    for folder in (root / "cggm_commands" / "pipelines", root / "pipelines"):
        if (folder / "compare.py").is_file():
            return folder
    raise UserError(
        f"Expected the scripts in {root / 'cggm_commands'}, but found none.",
        "Install the wheel again, or call the command from a checkout.",
    )


def find_scripts() -> dict[Words, Path]:
    """Words of each command to its script; ``brats_train.py`` is ``("brats", "train")``."""
    return {tuple(file.stem.split("_", 1)): file for file in sorted(scripts_folder().glob("*.py"))}


def find_mounted() -> dict[str, EntryPoint]:
    """First words that packages mount, each with a function of the arguments behind it.

    The function returns an exit code, or nothing for 0. A package announces it in its
    ``pyproject.toml``::

        [project.entry-points."cggm.commands"]
        mine = "my_package.command:main"
    """
    return {point.name: point for point in entry_points(group=GROUP)}


def split_words(arguments: Sequence[str], scripts: Iterable[Words]) -> tuple[Words, list[str]]:
    """The command that a line begins with, if it is a script's, and what stands behind it.

    The first word may be left out where one command alone has the second.

    Args:
        arguments: The command line without the program's name.
        scripts: The words of each script.

    Returns:
        The words, none where it begins with no script's, and the other arguments.
    """
    two, one = tuple(arguments[:2]), tuple(arguments[:1])
    if two in scripts or one in scripts:
        words = two if two in scripts else one
        return words, [*arguments[len(words) :]]
    short = [words for words in scripts if words[1:] == one]
    if one and len(short) == 1 and not any(words[:1] == one for words in scripts):
        return short[0], [*arguments[1:]]
    return (), [*arguments]


def call_as(words: Words) -> None:
    """Say by which words the user called what runs now.

    Args:
        words: Without ``cggm``.
    """
    global _called_as
    _called_as = words


def called_as() -> str | None:
    """How this process was called, ``cggm brats train``; ``None`` where it is the script itself."""
    return " ".join(("cggm", *_called_as)) if _called_as else None


def spoken(text: str) -> str:
    """A text in which scripts have the names by which the user calls them.

    Args:
        text: A help text or a message; ``python pipelines/brats_infer.py`` becomes ``cggm brats
            infer`` where this process was called as a command, and stays otherwise.
    """
    if not _called_as:
        return text
    commands = {file.stem: " ".join(("cggm", *words)) for words, file in find_scripts().items()}
    pattern = rf"(?:python (?:\S*/)?pipelines/|(?<![\w/.-]))({'|'.join(commands)})\.py\b"
    return re.sub(pattern, lambda found: commands[found[1]], text)
