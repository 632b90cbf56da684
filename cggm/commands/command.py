"""The command line of ``cggm``: which script it means, run as if by hand."""

import ast
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, requires
from pathlib import Path
from textwrap import shorten

from cggm import __version__
from cggm.commands.completion import candidates, shell_script
from cggm.commands.scripts import (
    Words,
    call_as,
    called_as,
    find_mounted,
    find_scripts,
    split_words,
)
from cggm.commands.streams import lasting_streams
from cggm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command's words and its arguments; those of the process where not given.

    Returns:
        The exit code, see :func:`cggm.runs.cli.run`. A script ends the process with its own.
    """
    with lasting_streams():
        return _answer(list(sys.argv[1:] if argv is None else argv))


def _answer(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first == "--complete":
        print("\n".join(candidates(arguments[1:])))
        return 0
    try:
        if first in ("-h", "--help"):
            print(_overview())
        elif first == "--version":
            print(f"cggm {__version__}")
        elif first == "--completion":
            print(shell_script("".join(arguments[1:2])), end="")
        else:
            return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str]) -> int:
    scripts, mounted = find_scripts(), find_mounted()
    words, behind = split_words(arguments, scripts)
    if words:
        return _run_script(words, scripts[words], behind)
    if arguments[0] in mounted:
        return _run_mounted(mounted[arguments[0]], arguments[1:])
    group = [words for words in scripts if words[0] == arguments[0]]
    if group and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print("\n".join(_lines(group)))
        return 0
    known = [" ".join(words) for words in scripts] + list(mounted)
    given = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    near = get_close_matches(given, known, n=1) or get_close_matches(arguments[0], known, n=1)
    advice = f"Did you mean `cggm {near[0]}`? " if near else ""
    raise UserError(f"Unknown command `cggm {given}`.", f"{advice}See cggm --help.")


def _run_script(words: Words, file: Path, arguments: Sequence[str]) -> int:
    """The script as ``python`` would run it, so that nothing differs between both ways."""
    call_as(words)
    sys.argv = [str(file), *arguments]
    return _explained(lambda: runpy.run_path(str(file), run_name="__main__"))


def _run_mounted(point: EntryPoint, arguments: Sequence[str]) -> int:
    call_as((point.name,))
    return _explained(lambda: point.load()(list(arguments)))


def _explained(call: Callable[[], object]) -> int:
    """An exit code; a package of an extra that is not installed is the user's to mend."""
    try:
        code = call()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("cggm"):
            raise
        raise UserError(
            f"{called_as()}: the package {missing!r} is not installed.",
            f'Install what commands need: pip install "cggm[{_extra_with(missing)}]".',
        ) from error
    return code if isinstance(code, int) else 0


def _extra_with(module: str) -> str:
    """The extra that has a package, by the metadata of what is installed; else the usual two."""
    try:
        needs = requires("cggm") or []
    except PackageNotFoundError:  # a copy of the sources
        needs = []
    found = re.compile(rf"{module.replace('_', '[_-]')}\b.*\bextra == '(?!dev')(\w+)'")
    extras = {match[1] for need in needs if (match := found.match(need))}
    return "seg,cls" if not extras or extras & {"run", "seg", "cls"} else min(extras)


def _overview() -> str:
    return "\n".join(
        [
            "Balanced multimodal training for PyTorch.",
            "",
            "    cggm COMMAND [--key value ...]",
            "    cggm COMMAND --help",
            "",
            *_lines(find_scripts()),
            "",
            "A first word may be left out where one command alone has the second: cggm demo.",
            "",
            "    cggm --version",
            "    cggm --completion bash|zsh|fish",
        ]
    )


def _lines(commands: Iterable[Words]) -> Iterator[str]:
    """A line for each command, and for each that is mounted if these are all."""
    scripts, commands = find_scripts(), [*commands]
    for words in commands:
        text = ast.get_docstring(ast.parse(scripts[words].read_text("utf-8"))) or ""
        line = shorten(text.partition("\n")[0], 75, placeholder=" ...")
        yield f"  cggm {' '.join(words):17} {line}"
    if len(commands) == len(scripts):
        for name, point in find_mounted().items():
            yield f"  cggm {name:17} From {point.value.partition(':')[0]}."
