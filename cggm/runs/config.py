"""Configurations: YAML files and command-line options read into dataclasses, typed and checked.

A schema is a dataclass. Its fields are numbers, strings, booleans, paths, literals, ``None``,
lists, tuples or dicts of these, or further dataclasses, called groups: ``training: {lr: 0.01}`` in
a file, ``--training.lr 0.01`` on the command line, where a bare ``--amp`` means true. Groups merge
field by field; any other value, lists and dicts included, replaces the earlier one. Nothing is ever
executed or imported because a configuration says so. Where a string reads as another type that its
field allows as well (``"1"`` in a ``float | str``, ``"null"`` in a ``str | None``), that type wins.
"""

import re
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from inspect import getdoc
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from cggm.commands import called_as, spoken
from cggm.errors import UserError
from cggm.runs.storage import read_yaml, write_atomically


@dataclass(frozen=True)
class Option:
    """One field of a schema.

    Args:
        key: Its name, with those of its groups: ``training.lr``.
        group: The group's name, or the first line of the schema's docstring.
        hint: Its type.
        default: Its default; ``argparse.SUPPRESS`` where there is none.
        help: What the docstring says of it.
        metavar: What stands for a value in the help, where the field says so.
    """

    key: str
    group: str
    hint: Any
    default: Any
    help: str
    metavar: str | None


def schema_options(schema: type, prefix: str = "", values: object = SUPPRESS) -> Iterator[Option]:
    """Every field that is no group, depth first.

    Args:
        schema: A dataclass.
        prefix: What keys begin with.
        values: An instance with the defaults, where not those of the schema.
    """
    hints, docs = get_type_hints(schema), _field_docs(schema)
    group = prefix.removesuffix(".") or _first_line(schema)
    for field in fields(schema):
        key, hint = prefix + field.name, hints[field.name]
        default = _default(field) if values is SUPPRESS else getattr(values, field.name)
        if is_group(hint):
            yield from schema_options(hint, f"{key}.", default)
        else:
            text = docs.get(field.name) or field.name.replace("_", " ")
            yield Option(key, group, hint, default, text, field.metadata.get("metavar"))


def is_group(hint: object) -> bool:
    """Whether a type is that of a group, a dataclass."""
    return isinstance(hint, type) and is_dataclass(hint)


def _default(field: Field) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return SUPPRESS if field.default is MISSING else field.default


def _field_docs(schema: type) -> dict[str, str]:
    parsed = [parse_docstring(base.__doc__ or "") for base in reversed(schema.__mro__)]
    return {p.arg_name: p.description or "" for doc in parsed for p in doc.params}


def _first_line(schema: type) -> str:
    return (getdoc(schema) or schema.__name__).partition("\n")[0].rstrip(".")


_TYPE = re.compile(r"\w+\.")  # what modules add to the names of types
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


# Paths are taken as they are: read as YAML, "#a" would be none at all.
_TYPES: dict[Any, Callable[[Any], Path | None]] = {
    Path: lambda value: Path(value),
    Path | None: lambda value: None if value in (None, "null") else Path(value),
}
T = TypeVar("T")


def read_config(schema: type[T], files: Iterable[Path], overrides: Sequence[str] = ()) -> T:
    """Read YAML files, later ones over earlier ones, and then options.

    Args:
        schema: Dataclass of the configuration.
        files: YAML files.
        overrides: Options as on the command line: ``["--training.lr", "0.01"]``.

    Raises:
        UserError: For unknown or missing keys, wrong types and unreadable files.
    """
    reader = ConfigReader(schema)
    for file in files:
        reader.add_file(file)
    return reader.read(schema, overrides)


def write_config(config: Any, path: Path, also: Mapping[str, object] | None = None) -> None:  # noqa: ANN401
    """Write a configuration as YAML that :func:`read_config` reads back equal.

    Args:
        config: An instance of a schema.
        path: The file, replaced in one step.
        also: What people and reports look for and the schema does not have.
    """
    more = yaml.safe_dump(_plain(also), sort_keys=False) if also else ""
    write_atomically(path, (to_yaml(config) + more).encode())


def to_yaml(config: Any) -> str:  # noqa: ANN401
    """The text that :func:`write_config` writes; its first line names the task, if there is one.

    Args:
        config: An instance of a schema.
    """
    header = {"task": config.task} if getattr(config, "task", "") else {}
    return str(yaml.safe_dump({**header, **_plain(asdict(config))}, sort_keys=False))


def changed_values(config: Any, file: Path) -> dict[str, tuple[object, object]]:  # noqa: ANN401
    """What a configuration says otherwise than an earlier one.

    Args:
        config: An instance of a schema.
        file: What :func:`write_config` wrote of the earlier one; keys that either of them lacks,
            as another version may have it, do not count.

    Returns:
        Dotted key, as an option has it, to the earlier value and the present one.

    Raises:
        UserError: If the file is damaged.
    """
    earlier, now = read_yaml(file), _plain(asdict(config))
    found = {}
    for option in schema_options(type(config)):
        before, after = (_value(values, option.key) for values in (earlier, now))
        if before is not SUPPRESS and before != after:
            found[option.key] = (before, after)
    return found


def _value(values: object, key: str) -> object:
    """What nested mappings have under a dotted key, ``SUPPRESS`` where they have nothing."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return SUPPRESS
        values = values[part]
    return values


class ConfigReader:
    """Collects values for schemas: their defaults, then files, then options.

    Args:
        schemas: Dataclasses whose fields become the known keys; no two share one.
        description: What the script does and an example, for ``--help``, which keeps its lines.
    """

    def __init__(self, *schemas: type, description: str | None = None) -> None:
        set_parsing_settings(
            unset_sentinel=True, instantiate_subclass_spec_in_any=False, import_path_denylist=["*"]
        )
        self._parser = ArgumentParser(
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,  # ours prints what a script's own sources come to
            prog=called_as(),
            description=description and spoken(description),
            formatter_class=HelpFormatter,
            usage="%(prog)s [--key value ...]",
        )
        self._hints: dict[str, Any] = {}
        self._tasks = {task for schema in schemas if (task := getattr(schema, "task", ""))}
        for schema in schemas:
            self._add_options(schema)

    def add_file(self, file: Path) -> None:
        """Lay the values of a YAML file over what is known so far.

        Args:
            file: Keys that it does not name keep their values. What it has under ``tasks`` by the
                name of a task goes into ``balancer.settings`` for that task's script alone.

        Raises:
            UserError: Naming the file, for an unknown key, a wrong type or no YAML.
        """
        self._add(self._content(file), file)

    def add_methods(self, files: Sequence[Path]) -> None:
        """Lay methods' files over what is known, several as a chain; see :meth:`add_file`."""
        first, *others = (self._content(file) for file in files)
        for file, other in zip(files[1:], others, strict=True):
            first = _chained(first, other, file)
        self._add(first, files[0])

    def _content(self, file: Path) -> object:
        content = read_yaml(file)
        if isinstance(content, dict):
            if self._tasks:
                self._check_task(content.pop("task", None), file)
            content = _for_task(content, self._tasks)
        return content

    def _add(self, content: object, file: Path) -> None:
        values = dict(_flat(content, self._hints, file))
        for key in values:
            if key not in self._hints:
                raise UserError(f"{file}: unknown key `{key}`.", _suggestion(key, self._hints))
        try:
            typed = self._parser.parse_object(values, defaults=False)
        except ArgumentError as error:
            alone = ((k, v, partial(self._try, {k: v})) for k, v in values.items())
            raise self._explained(error, alone, f"{file}: ", "") from error
        self._parser.set_defaults({key: typed[key] for key in values})

    def read(self, schema: type[T], argv: Sequence[str]) -> T:
        """Lay options over everything and build one schema; ``--help`` prints and exits.

        Args:
            schema: One of the schemas.
            argv: Options of any of the schemas.

        Raises:
            UserError: For an unknown option, a wrong type, or a key of ``schema`` without a value.
        """
        for argument in argv:
            name = argument.partition("=")[0].removeprefix("--").removesuffix("+")
            if argument.startswith("--") and not self._knows(name):
                raise UserError(f"Unknown option --{name}.", _suggestion(name, self._hints, "--"))
        try:
            values = self._parser.parse_args(list(argv))
        except ArgumentError as error:
            self._check_words(argv)
            alone = (
                (key, " ".join(words), partial(self._parser.parse_args, arguments))
                for key, words, arguments in options_of(argv)
            )
            raise self._explained(error, alone, "", "--") from error
        return _build(schema, values)

    def _add_options(self, schema: type) -> None:
        groups: dict[str, Any] = {}
        for option in schema_options(schema):
            if option.group not in groups:
                groups[option.group] = self._parser.add_argument_group(option.group)
            switch = bool in (option.hint, *get_args(option.hint))
            bare: dict[str, Any] = {"nargs": "?", "const": True} if switch else {}
            groups[option.group].add_argument(
                f"--{option.key}",
                type=_TYPES.get(option.hint, option.hint),
                default=option.default,
                help=spoken(option.help),
                metavar=option.metavar or metavar(option.hint),
                **bare,
            )
            self._hints[option.key] = option.hint

    def _check_task(self, task: object, file: Path) -> None:
        if task is not None and task not in self._tasks:
            raise UserError(
                f"{file}: expected a configuration of the task {' or '.join(self._tasks)}, but it "
                f"is one of {task!r}.",
                "Use the script of that task, or take the line `task` out of a copy.",
            )

    def _knows(self, name: str) -> bool:
        """Whether an option exists; entries of a dict are options too."""
        entry_of = (key for key in self._hints if name.startswith(f"{key}."))
        return name == "help" or name in self._hints or any(entry_of)

    def _check_words(self, argv: Sequence[str]) -> None:
        """Refuse words that belong to no option, and options without the value that they need.

        Every option takes one value, which only a switch may do without.
        """
        options = list(options_of(argv))
        first = next((k for k, word in enumerate(argv) if word.startswith("--")), len(argv))
        stray = [*argv[:first], *(word for _, words, _ in options for word in words[1:])]
        if stray:
            raise UserError(
                f"unrecognized arguments: {' '.join(stray)}.",
                "Give each value behind its option; quote one that has blanks.",
            )
        for key, words, _ in options:
            if not words and bool not in (self._hints.get(key), *get_args(self._hints.get(key))):
                raise UserError(f"--{key}: expected one argument.", "See --help for the options.")

    def _try(self, values: Mapping[str, object]) -> None:
        self._parser.parse_object(dict(values), defaults=False)

    def _explained(
        self,
        error: ArgumentError,
        alone: Iterable[tuple[str, object, Callable[[], object]]],
        where: str,
        prefix: str,
    ) -> UserError:
        """Say which value is wrong: the first one that is refused without the others."""
        for key, value, parse in alone:
            try:
                parse()
            except ArgumentError:
                hint = self._hints.get(key)
                if hint is None:
                    break
                expected = hint.__name__ if isinstance(hint, type) else _TYPE.sub("", str(hint))
                return UserError(
                    f"{where}expected {prefix}{key} to be {expected}, but got {str(value)!r}.",
                    "See --help for the options.",
                )
        return UserError(f"{where}{error.message}.", "See --help for the options.")


def _chained(first: Any, other: Any, file: Path) -> dict[str, Any]:  # noqa: ANN401
    """Values of two methods' files, of which the first may be those of a chain, as one chain's."""
    before, balancer = first["balancer"], other["balancer"]
    names, added = before["name"].split("+"), balancer["name"]
    if added in names:
        raise UserError(f"{file}: {added} is in the chain twice.", "Name it once.")
    for key in (first.keys() & other.keys()) - {"balancer"}:
        if first[key] != other[key]:
            what = f"expected {key} {first[key]}, as the methods before, but got {other[key]}."
            raise UserError(f"{file}: {what}", "Leave out one: they need different networks.")
    own = before["settings"] if len(names) > 1 else {names[0]: before["settings"] or {}}
    settings = {**own, added: balancer["settings"] or {}}
    return {**first, **other, "balancer": {"name": "+".join([*names, added]), "settings": settings}}


def _for_task(content: Any, tasks: Collection[str]) -> Any:  # noqa: ANN401
    """Values of a file with the settings of the balancing method that it has for a task."""
    own, balancer = content.get("tasks"), content.get("balancer")
    groups = [balancer, own, *(own.values() if isinstance(own, Mapping) else [])]
    if not all(isinstance(group, Mapping) for group in groups):
        return content
    settings = dict(balancer.get("settings") or {})
    for task in sorted(tasks & own.keys()):
        settings |= own[task]
    rest = {key: value for key, value in content.items() if key != "tasks"}
    return {**rest, "balancer": {**balancer, "settings": settings}}


def options_of(argv: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each option with its words, and the arguments that say it."""
    starts = [k for k, argument in enumerate(argv) if argument.startswith("--")]
    for start, end in pairwise([*starts, len(argv)]):
        first, *words = argv[start:end]
        name, _, value = first.removeprefix("--").partition("=")
        given = [value, *words] if "=" in first else words
        yield name.removesuffix("+"), given, [first, *words]


def _flat(
    data: object, known: Collection[str], file: Path, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested groups."""
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        group = f"`{prefix.rstrip('.')}`" if prefix else "the file"
        raise UserError(
            f"{file}: expected {group} to hold `key: value` lines, but got {data!r}.",
            "Correct the file.",
        )
    for name, value in data.items():
        key = f"{prefix}{name}"
        if any(other.startswith(f"{key}.") for other in known):
            yield from _flat(value, known, file, f"{key}.")
        else:
            yield key, value


def _suggestion(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The known key that comes closest, in full or in its last part."""
    names = {other.rpartition(".")[2]: other for other in known}
    close = get_close_matches(key, known, 1)
    close += [names[name] for name in get_close_matches(key.rpartition(".")[2], names, 1)]
    if close:
        return f"Did you mean {prefix}{close[0]}?"
    return "See --help for the options." if prefix else f"Known keys: {', '.join(known)}."


def _build(schema: type[T], values: Namespace, prefix: str = "") -> T:
    hints = get_type_hints(schema)
    parts: dict[str, Any] = {}
    for field in fields(schema):  # type: ignore[arg-type]
        key, hint = prefix + field.name, hints[field.name]
        if is_group(hint):
            parts[field.name] = _build(hint, values, f"{key}.")
        elif key in values:
            parts[field.name] = values[key]
        else:
            raise UserError(f"Missing --{key}.", "Give it as an option or in a configuration file.")
    return schema(**parts)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """The value in the types that YAML has."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
