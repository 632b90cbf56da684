"""Forms of what a JSON or YAML file holds, checked before anything is computed from it.

A run, an evaluation or a comparison may come from anywhere. What its files say is compared with a
form, so that a value of another type is one message instead of a traceback deep in a report.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cggm.errors import UserError

NUMBER = (int, float, None)
"""A number, or null where it was none."""

_LARGEST = 1e300  # larger integers are no 64-bit floating-point numbers


def check_form(value: Any, form: Any, file: Path, place: str = "its content") -> None:  # noqa: ANN401
    """Refuse a value of another form.

    A form is a type, where ``bool`` is no ``int`` and ``object`` is anything; ``None``; a tuple of
    alternatives; ``[form]``, a list of such; or a mapping. Keys of a mapping that end in ``?`` may
    be absent; one with ``*`` is a pattern for the keys that are not named, the first that fits.

    Args:
        value: What a file holds.
        form: What it is to be.
        file: The file, for the message.
        place: Where in it, for the message.

    Raises:
        UserError: If it does not fit, or a number is too large.

    Example:
        >>> check_form({"loss": 0.5, "s": [1, None]}, {"loss": float, "*": [NUMBER]}, Path("a"))
        >>> check_form({"loss": "low"}, {"loss?": float}, Path("a.json"))
        Traceback (most recent call last):
        cggm.errors.UserError: a.json: expected loss to be a number, but got 'low'. Get the file ...
    """
    if isinstance(form, tuple):
        _check_alternatives(value, form, file, place)
    elif isinstance(form, list):
        _require(isinstance(value, list), "a list", value, file, place)
        for number, entry in enumerate(value, 1):
            check_form(entry, form[0], file, f"{place}, entry {number},")
    elif isinstance(form, dict):
        _require(isinstance(value, dict), "an object", value, file, place)
        _check_keys(value, form, file, place)
    else:
        _require(_is(value, form), _WORDS.get(form, "a value of another kind"), value, file, place)


_WORDS: dict[Any, str] = {
    int: "a number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    None: "null",
}


def _is(value: Any, kind: type | None) -> bool:  # noqa: ANN401
    if kind is None:
        return value is None
    if kind in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < _LARGEST)
    return isinstance(value, kind)


def _check_alternatives(value: object, forms: tuple[Any, ...], file: Path, place: str) -> None:
    kinds = [form for form in forms if form is None or isinstance(form, type)]
    if any(_is(value, kind) for kind in kinds):
        return
    # Of a structured alternative the message is that of what is wrong within it.
    for form in forms:
        if isinstance(form, dict | list) and isinstance(value, type(form)):
            check_form(value, form, file, place)
            return
    words = " or ".join(dict.fromkeys(_WORDS.get(kind, "another value") for kind in kinds))
    _require(False, words or "another value", value, file, place)


def _check_keys(value: dict[str, Any], form: dict[str, Any], file: Path, place: str) -> None:
    below = "" if place == "its content" else f"{place}, "
    patterns = {key: entry for key, entry in form.items() if "*" in key}
    named = {key.removesuffix("?"): form[key] for key in form.keys() - patterns.keys()}
    for key in form:
        if key in named and key not in value:  # one without ? must be there
            _require(False, f"an object with {key!r}", value, file, place)
    for key, entry in value.items():
        fitting = (
            [key] if key in named else [p for p in patterns if p == "*" or fnmatchcase(key, p)]
        )
        if fitting:
            check_form(entry, named.get(key, patterns.get(fitting[0])), file, f"{below}{key}")


def _require(fits: bool, words: str, value: object, file: Path, place: str) -> None:
    if not fits:
        raise UserError(
            f"{file}: expected {place} to be {words}, but got {repr(value)[:40]}.",
            "Get the file anew, or delete it.",
        )
