"""Quantifiers of assertions, which nothing does not satisfy.

``all([])`` and ``not any([])`` are true: an assertion with them passes once there is nothing left
to look at.
"""

from collections.abc import Iterable


def every(conditions: Iterable[object]) -> bool:
    """Whether all conditions hold, of which there has to be one."""
    found = [bool(condition) for condition in conditions]
    assert found, "nothing to look at"
    return all(found)


def none(conditions: Iterable[object]) -> bool:
    """Whether no condition holds, of which there has to be one."""
    return every(not condition for condition in conditions)
