"""How ``--help`` shows options."""

from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

_WORDS = {bool: "true|false", int: "N", float: "X", str: "NAME", Path: "PATH"}
_COLLECTIONS = {list: "LIST", tuple: "LIST", dict: "MAP"}


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description; names a default where there is one, but no type."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action) if action.dest == "help" else action.help or ""
        if action.default is SUPPRESS or action.default is None:
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else "%(default)s"
        return f"{text.removesuffix('.')} (default: {default})."


def metavar(hint: Any) -> str:  # noqa: ANN401
    """What stands for a value of a type: ``N``, ``X``, ``PATH``, ``cpu|cuda``."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    parts = [part for part in get_args(hint) if part is not NoneType]
    collection = _COLLECTIONS.get(get_origin(hint) or hint)
    if collection or not parts:
        return collection or _WORDS.get(hint, "VALUE")
    return "|".join(dict.fromkeys(map(metavar, parts)))
