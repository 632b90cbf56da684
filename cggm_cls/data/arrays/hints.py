"""Hints at arrays that fit together, and yet may not be what they seem."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cggm_cls.data.arrays.table import ArrayModality, ArrayTable

_NO_LABEL = {"na", "n/a", "nan", "null", "none", "missing", "unknown", "?", "-", "."}
_FEWEST = 5  # samples of a class, below which a feature has one value there by chance
_SHOWN = 3


def hints(table: ArrayTable, classes: Sequence[str] | None) -> list[str]:
    """What a user ought to look at before he believes a figure.

    Classes that read like a missing value or like each other, features that tell the target by
    themselves, and sequences that look padded but come without lengths.

    Args:
        table: The samples.
        classes: The class of each, ``None`` for a regression.
    """
    found = [] if classes is None else [*_classes(Counter(classes))]
    names = [*table.modalities]
    if len(names) == 1:
        found.append(f"There is one modality, {names[0]}: no method has anything to balance.")
    for place, name in enumerate(names):
        first, others = table.modalities[name].values, names[place + 1 :]
        same = [n for n in others if np.array_equal(first, table.modalities[n].values)]
        found += [f"{name} and {other} hold the same values." for other in same]
    for name, modality in table.modalities.items():
        found += _copies(name, modality, table.target, classes)
        found += _padding(name, modality)
    return found


def _classes(counts: Counter[str]) -> Iterator[str]:
    numbers = {name for name in counts if name.isdigit()}
    for name, count in counts.items():
        unlabelled = name == "-1" and numbers == {*counts} - {name} and len(numbers) > 1
        if name.strip().lower() in _NO_LABEL or unlabelled:
            yield (
                f"{count} samples are of a class {name!r}, which often stands for no label: leave "
                "them out if so."
            )
    alike = Counter(name.strip().lower() for name in counts)
    for text in (text for text, count in alike.items() if count > 1):
        same = ", ".join(repr(name) for name in counts if name.strip().lower() == text)
        yield f"Classes differ by case or spaces alone: {same}."


def _copies(
    name: str, modality: ArrayModality, target: NDArray[np.generic], classes: Sequence[str] | None
) -> Iterator[str]:
    """Features of rows that have one value in each class, or are the number that is predicted."""
    values = modality.values
    if values.ndim != 2 or len(values) < 2 * _FEWEST:
        return
    if classes is None:
        copies = (values == target[:, None]).all(0)
    else:
        labels = np.array(classes)
        common = [label for label, count in Counter(classes).items() if count >= _FEWEST]
        if len(common) < 2:
            return
        ends = [
            (part.min(0), part.max(0)) for part in (values[labels == label] for label in common)
        ]
        lowest = np.stack([low for low, _ in ends])
        steady = np.all([low == high for low, high in ends], axis=0)
        copies = steady & (lowest != lowest[0]).any(0)
    if copies.any():
        where = np.flatnonzero(copies)
        shown = [modality.columns[k] if modality.columns else str(k) for k in where[:_SHOWN]]
        rest = ", ..." if len(where) > _SHOWN else ""
        yield (
            f"{len(where)} features of {name} tell the target by themselves, as a copy of it "
            f"would: {', '.join(shown)}{rest}. List the `columns` that are features if so."
        )


def _padding(name: str, modality: ArrayModality) -> Iterator[str]:
    values = modality.values
    if values.ndim != 3 or values.shape[1] < 2 or modality.mask is not None:
        return
    padded = int((~values[:, -1].any(axis=1)).sum())
    if padded > 1:
        yield (
            f"{padded} of {len(values)} sequences of {name} end in zeros, which count as real "
            f"steps: {name}.lengths would say where they end."
        )
