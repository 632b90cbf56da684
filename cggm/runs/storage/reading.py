"""Readers of YAML and JSON that others may have written, within bounds of size, depth and aliases.

A run, a cohort or a comparison may come from anywhere, and a few lines of YAML can stand for more
values than fit into memory. Nothing here executes or imports what a file says.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent

from cggm.errors import UserError

_LARGEST_YAML = 2**22  # bytes
_LARGEST_JSON = 2**29
_DEEPEST = 50  # collections in each other
_MOST_VALUES = 100_000  # with those that aliases repeat


def read_yaml(path: Path) -> Any:  # noqa: ANN401
    """Read a YAML file; its values are numbers, strings, booleans, dates, lists and mappings.

    Args:
        path: The file.

    Raises:
        UserError: If it cannot be read, is no YAML, holds a key twice, or is larger than any of
            ours could be.
    """
    text = _text(path, _LARGEST_YAML, "YAML")
    try:
        _check_bounds(yaml.parse(text, yaml.SafeLoader))
        _check_keys(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"{path}{line}: expected plain YAML, but {problem}.", "Correct the file."
        ) from error


def _check_keys(root: yaml.Node | None) -> None:
    """Refuse a key that a mapping holds twice, of which YAML keeps the last without a word."""
    nodes, met = [root] if root else [], set()
    while nodes:
        node = nodes.pop()
        if id(node) in met or isinstance(node, yaml.ScalarNode):
            continue
        met.add(id(node))  # aliases can form circles
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        seen = set()
        for key, value in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.value != "<<" and isinstance(key, yaml.ScalarNode):
                problem = f"found the key {key.value!r} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
            nodes.append(value)


def read_json(path: Path, kind: type = dict, *, missing_ok: bool = False) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Args:
        path: The file.
        kind: What its outermost value must be.
        missing_ok: Whether an absent file reads as an empty object or list.

    Raises:
        UserError: If it cannot be read, is no JSON, or holds something else.
    """
    if missing_ok and not path.exists():
        return kind()
    try:
        value = parse_json(_text(path, _LARGEST_JSON, "JSON"))
    except ValueError as error:
        raise UserError(
            f"{path}: expected JSON, but {error}.", "Delete the file, or get it anew."
        ) from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list" if kind is list else kind.__name__
        what = f"expected {wanted} in JSON, but got {str(value)[:40]!r}"
        raise UserError(f"{path}: {what}.", "Delete the file, or get it anew.")
    return value


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401
    """The value of a JSON text, for who has a message of their own.

    Args:
        text: The text.

    Raises:
        ValueError: If it is none, or nested deeper than the reader can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _text(path: Path, largest: int, form: str) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > largest else file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.", f"Give an existing {form} file.") from error
    if max(size, len(content)) > largest:
        raise UserError(
            f"{path}: expected a {form} file of at most {largest // 2**20} MB, but it is larger.",
            "Give the right file.",
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        what = f"{path}: expected plain {form}, but it is not a text file."
        raise UserError(what, "Correct the file.") from error


def _check_bounds(events: Iterable[Event]) -> None:
    """Refuse what would become too deep or too large, before any of it is made.

    Raises:
        ValueError: If so.
    """
    open_sizes = [0]  # values so far in each collection that is open, outermost first
    names: list[str | None] = []  # their anchors
    sizes: dict[str, int] = {}  # values that an alias of each anchor stands for
    for event in events:
        if isinstance(event, CollectionStartEvent):
            open_sizes.append(1)
            names.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            size, name = open_sizes.pop(), names.pop()
            sizes |= {name: size} if name else {}
            open_sizes[-1] += size
        elif isinstance(event, AliasEvent):
            if event.anchor in names:
                raise ValueError("an alias stands for a collection that it is part of")
            open_sizes[-1] += sizes.get(event.anchor or "", 1)
        elif isinstance(event, ScalarEvent):
            sizes |= {event.anchor: 1} if event.anchor else {}
            open_sizes[-1] += 1
        if len(open_sizes) > _DEEPEST or open_sizes[-1] > _MOST_VALUES:
            raise ValueError("it is too deep or too large, with what its aliases stand for")
