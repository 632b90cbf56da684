"""Builds a method from its name and settings, as a configuration gives them."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import nn

from cggm import methods
from cggm.balancer import Balancer
from cggm.errors import MethodRefusal, UserError


def build_balancer(
    name: str, settings: Mapping[str, Any], parts: Mapping[str, Callable[[], Any]]
) -> Balancer:
    """Build a method.

    Args:
        name: A public name of ``cggm.methods``.
        settings: Plain values for the method's keyword arguments.
        parts: What the task provides under a method's argument names, such as ``task_loss``,
            ``heads`` and ``score``; made only if the method takes it.

    Returns:
        The method, unbound.

    Raises:
        UserError: If the name or a setting is unknown, or a value out of range.
    """
    if name not in methods.__all__:
        raise UserError(f"Unknown method {name!r}.", f"Available: {', '.join(methods.__all__)}.")
    method: type[Balancer] = getattr(methods, name)
    accepted = list(signature(method).parameters)
    known = [argument for argument in accepted if argument not in parts]
    for setting in settings:
        if setting not in known:
            close = get_close_matches(setting, known, 1)
            raise UserError(
                f"Unknown setting {setting!r} of {name}.",
                f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known) or 'none'}.",
            )
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

    Raises:
        UserError: As there.
        MethodRefusal: If the method cannot serve this network or its task.
    """
    with torch.random.fork_rng(devices=[]):  # so that heads leave dropout as it is without them
        balancer = build_balancer(name, settings, parts)
    try:
        return balancer.bind(network)
    except ValueError as error:
        what = f"{name} cannot be used here: {error}"
        raise MethodRefusal(what, "See configs/methods.") from error
