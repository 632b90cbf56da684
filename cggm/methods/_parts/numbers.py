"""Numbers for each modality: as settings give them, for all or by name, and how they compare."""

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

Numbers = float | Mapping[str, float]
"""One number for all modalities, or modality name to number."""


def check_factors(argument: str, values: Numbers) -> None:
    """Refuse factors that are negative or not finite.

    Args:
        argument: What the factors are called in the message.
        values: One number, or one per modality.

    Raises:
        ValueError: If a factor cannot serve.
    """
    for value in values.values() if isinstance(values, Mapping) else [values]:
        if not isfinite(value) or value < 0:
            raise ValueError(f"Expected `{argument}` finite and not negative, but got {value}.")


def check_columns(argument: str, columns: Sequence[Sequence[float]]) -> None:
    """Refuse recorded factors that are not as many for each modality, negative or not finite.

    Args:
        argument: What the factors are called in the message.
        columns: One list for each modality.

    Raises:
        ValueError: If they cannot serve.
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Expected as many `{argument}` for each modality, at least one, "
            f"but got {sorted(lengths)}."
        )
    for column in columns:
        for value in column:
            check_factors(argument, value)


def check_names(argument: str, names: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse names other than those of the encoders.

    Args:
        argument: What bears the names, for the message.
        names: Names given, in any order.
        expected: Names of the encoders.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    if sorted(names) != sorted(expected):
        raise ValueError(
            f"Expected `{argument}` for the modalities {list(expected)}, but got {list(names)}. "
            "Name every encoder once."
        )


def per_modality(argument: str, values: Numbers, names: Sequence[str]) -> Tensor:
    """Put numbers into the order of the encoders.

    Args:
        argument: What the numbers are called in the message.
        values: One number, or one per modality.
        names: Names of the encoders, in order.

    Returns:
        Shape ``(M,)``, float32.

    Raises:
        ValueError: If a name is missing or unknown.
    """
    if not isinstance(values, Mapping):
        return torch.full((len(names),), float(values))
    check_names(argument, list(values), names)
    return torch.tensor([float(values[name]) for name in names])


def relative_advantages(losses: Tensor) -> Tensor:
    """How far each loss is below the mean of all, as a share of it.

    Args:
        losses: Shape ``(M,)``.

    Returns:
        Shape ``(M,)``; 0 where the mean is 0 or a loss is not finite.

    Example:
        >>> relative_advantages(torch.tensor([1.0, 2.0, 3.0]))
        tensor([ 0.5000,  0.0000, -0.5000])
    """
    mean = losses.mean()
    return torch.nan_to_num((mean - losses) / mean, 0.0, 0.0, 0.0)
