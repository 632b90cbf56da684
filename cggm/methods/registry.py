"""Methods by name: found without a list of them, built with their settings, and bound."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cggm.balancer import Balancer
from cggm.errors import MethodRefusal, UserError
from cggm.methods._parts import Chain


@cache
def published_methods() -> dict[str, type[Balancer]]:
    """Every method of this package by the name of its class, in alphabetical order.

    A method is a public subclass of :class:`cggm.Balancer` in a module of this folder; joint
    training, ``Balancer`` itself, is one of them.
    """
    found = {"Balancer": Balancer}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = import_module(f"{__package__}.{file.stem}")
        own = {n: v for n, v in vars(module).items() if _is_method(v) and n[0] != "_"}
        found |= {n: v for n, v in own.items() if v.__module__ == module.__name__}
    return dict(sorted(found.items()))


def method_names() -> list[str]:
    """Names of the methods of this package, in alphabetical order."""
    return list(published_methods())


def find_method(name: str) -> type[Balancer]:
    """A method by its name.

    Args:
        name: The class's name, of this package or of any subclass of :class:`cggm.Balancer` that
            was defined so far; or, of one in a module that can be imported, the path
            ``package.module.Class``.

    Raises:
        UserError: If there is none of that name, or several, or if its module cannot be imported.
    """
    if "." in name:
        return _imported(name)
    methods = published_methods()
    if name in methods:
        return methods[name]
    others = {kind for kind in _subclasses(Balancer) if kind.__name__ == name}
    if len(others) == 1:
        return others.pop()
    if others:
        places = ", ".join(sorted(f"{kind.__module__}.{name}" for kind in others))
        raise UserError(f"Expected one method {name!r}, but found {places}.", "Give its path.")
    raise UserError(
        f"Unknown method {name!r}.",
        f"Available: {', '.join(methods)}; or package.module.Class for a class of your own.",
    )


def build_balancer(
    name: str, settings: Mapping[str, Any], parts: Mapping[str, Callable[[], Any]]
) -> Balancer:
    """Build a method, or a chain of several.

    Args:
        name: See :func:`find_method`; several names, with ``+`` between them, for a
            :class:`~cggm.Chain`, each class once.
        settings: Plain values for the method's keyword arguments; for a chain, those of each method
            by its name.
        parts: What the task provides under a method's argument names, such as ``task_loss``,
            ``heads`` and ``score``; made only if the method takes it.

    Returns:
        The method, unbound.

    Raises:
        UserError: If the name or a setting is unknown, or a value out of range.
    """
    if "+" in name:
        return _build_chain(name, settings, parts)
    method = find_method(name)
    accepted = signature(method).parameters
    known = [argument for argument in accepted if argument not in parts]
    for setting in settings:
        if setting not in known:
            close = get_close_matches(setting, known, 1)
            raise UserError(
                f"Unknown setting {setting!r} of {name}.",
                f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known) or 'none'}.",
            )
    for argument, parameter in accepted.items():
        if parameter.default is parameter.empty and argument not in {*parts, *settings}:
            what = f"Settings of {name}: expected `{argument}`, which it cannot do without."
            raise UserError(what, f"Give `{argument}`, or take another method.")
    try:
        return method(**{a: parts[a]() for a in accepted if a in parts}, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"Settings of {name}: {error}", "Correct the configuration.") from error


def bound_balancer(
    name: str,
    settings: Mapping[str, Any],
    parts: Mapping[str, Callable[[], Any]],
    network: nn.Module,
) -> Balancer:
    """Build a method, see :func:`build_balancer`, and bind it to a network; draws nothing.

    Heads whose losses the network learns from follow its learning rate, as if they were a part of
    it.

    Args:
        name: See :func:`find_method`.
        settings: Plain values for the method's keyword arguments.
        parts: What the task provides.
        network: Has ``encoders`` and ``output_layer``.

    Raises:
        UserError: As there.
        MethodRefusal: If the method cannot serve this network or its task.
    """
    with torch.random.fork_rng(devices=[]):  # so that heads leave dropout as it is without them
        balancer = build_balancer(name, settings, parts)
    methods = balancer.parts if isinstance(balancer, Chain) else [balancer]
    through_heads = any(m.trains_through_heads for m in methods)  # which a chain shares
    for method in methods:
        method.heads_follow = through_heads
    try:
        return balancer.bind(network)
    except ValueError as error:
        what = f"{name} cannot be used here: {error}"
        raise MethodRefusal(what, "See configs/methods.") from error


def _build_chain(
    name: str, settings: Mapping[str, Any], parts: Mapping[str, Callable[[], Any]]
) -> Balancer:
    names = name.split("+")
    unknown = [key for key in settings if key not in names]
    if unknown or len(set(names)) < len(names):
        raise UserError(
            f"Expected each method of the chain {name} once, and settings by their names, but got "
            f"settings of {', '.join(settings) or 'none'}.",
            "Name every class once, and give settings as {CGGM: {rho: 1.0}}.",
        )
    methods = [build_balancer(part, settings.get(part) or {}, parts) for part in names]
    try:
        return Chain(*methods)
    except ValueError as error:
        raise MethodRefusal(f"{name} is no chain: {error}", "See docs/methods.md.") from error


def _imported(path: str) -> type[Balancer]:
    module, _, name = path.rpartition(".")
    try:
        method: Any = getattr(import_module(module), name, None)
    except ImportError as error:
        raise UserError(
            f"Expected the method {path!r} in a module that can be imported, but: {error}.",
            "Add the folder that holds it to PYTHONPATH.",
        ) from error
    if not _is_method(method):
        raise UserError(
            f"Expected {path!r} to be a subclass of cggm.Balancer, but it is not.",
            "Give the path of the class.",
        )
    return method  # type: ignore[no-any-return]


def _is_method(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, type) and issubclass(value, Balancer)


def _subclasses(kind: type[Balancer]) -> Iterator[type[Balancer]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
