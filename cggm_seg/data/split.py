"""Which cases a network learns from, and which ones select the checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cggm.errors import UserError


@dataclass(frozen=True)
class Split:
    """Case identifiers of a training.

    Attributes:
        training: Cases that the network learns from.
        validation: Cases that select the checkpoint.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]

    def digest(self) -> str:
        """The same for the same cases in the same roles."""
        text = "\n".join([*self.training, "", *self.validation])
        return hashlib.sha256(text.encode()).hexdigest()


def split_cases(case_ids: Sequence[str], fraction: float, seed: int) -> Split:
    """Hold out a random share of the cases for validation, at least one.

    Args:
        case_ids: All cases; their order does not matter.
        fraction: Share of the cases held out.
        seed: Chooses them.

    Raises:
        UserError: If fewer than two cases are there.
    """
    if len(case_ids) < 2:
        raise UserError(
            f"Expected at least 2 cases, one of them for validation, but got {len(case_ids)}.",
            "Add cases to the data folder.",
        )
    order = np.random.default_rng(seed).permutation(sorted(case_ids))
    held_out = min(max(1, round(fraction * len(order))), len(order) - 1)
    training, validation = order[held_out:].tolist(), order[:held_out].tolist()
    return Split(tuple(sorted(training)), tuple(sorted(validation)))
