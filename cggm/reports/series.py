"""Columns of numbers out of the JSON lines of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]


def column(records: Records, key: str) -> Values:
    """One number per record, NaN where it is absent or null.

    Args:
        records: Lines of ``metrics.jsonl`` or ``balance.jsonl``.
        key: A number in them.
    """
    return np.array([np.nan if (v := r.get(key)) is None else v for r in records], float)


def by_modality(records: Records, key: str) -> dict[str, Values]:
    """A column for each modality that has any number.

    Args:
        records: Lines of ``balance.jsonl``.
        key: A mapping by modality in them, such as ``"score"``.
    """
    groups = [r.get(key) or {} for r in records]
    columns = {name: column(groups, name) for name in modalities(records)}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def modalities(records: Records) -> list[str]:
    """Names in the lines of ``balance.jsonl``, in their order."""
    keys = ("score", "term", "cosine", "gradient_norm")
    return list(dict.fromkeys(n for r in records for key in keys for n in r.get(key) or ()))
