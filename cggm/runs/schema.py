"""The options that a dataclass stands for: one per field, groups depth first."""

from argparse import SUPPRESS
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import getdoc
from typing import Any, get_type_hints

from docstring_parser import parse as parse_docstring


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
