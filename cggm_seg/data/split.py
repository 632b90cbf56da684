"""Split of a cohort: which cases a network learns from, and which ones select the checkpoint."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cggm.errors import UserError


@dataclass(frozen=True)
class Split:
    """Case identifiers of a training.

    Attributes:
        training: Cases that the network learns from.
        validation: Cases that select the checkpoint.
        patients: Case to patient; no patient is in both.
        fold: Number of the fold that is held out, from 1, and how many there are; ``None`` where a
            share of the cases is held out.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    patients: Mapping[str, str] = field(default_factory=dict)
    fold: tuple[int, int] | None = None

    def digest(self) -> str:
        """The same for the same cases in the same roles."""
        text = "\n".join([*self.training, "", *self.validation])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """What ``split.json`` of a run says; ``fold`` is there for a fold alone."""
        record: dict[str, object] = {
            "training": list(self.training),
            "validation": list(self.validation),
            "patients": dict(self.patients),
        }
        if self.fold is not None:
            record["fold"] = {"number": self.fold[0], "of": self.fold[1]}
        return record


def split_cases(
    case_ids: Sequence[str],
    fraction: float,
    seed: int,
    *,
    patients: Mapping[str, str] | None = None,
    fold: tuple[int, int] | None = None,
) -> Split:
    """Holds out a random share of the patients, or one of several folds, for validation.

    All examinations of a patient go together: a network that has seen one has as good as seen the
    others, and is not tested by them.

    Args:
        case_ids: All cases; their order does not matter.
        fraction: Share of the cases held out, as nearly as whole patients allow; at least one
            patient.
        seed: Chooses them.
        patients: Case to patient; every case is one of its own where not given.
        fold: Number of the fold, from 1, and how many there are, in place of a share. Over all
            numbers every case is held out once.

    Raises:
        UserError: If there are fewer patients than it takes.
    """
    of = {case: (patients or {}).get(case, case) for case in case_ids}
    groups = defaultdict(list)
    for case in sorted(case_ids):
        groups[of[case]].append(case)
    _check_count(len(groups), len(case_ids), fold)
    if len(groups) == len(case_ids):  # the split of cases must not depend on how they are called
        groups = defaultdict(list, {case: [case] for case in case_ids})
    order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
    sizes = {patient: len(cases) for patient, cases in groups.items()}
    names = _fold(order, sizes, *fold) if fold else [*_share(order, sizes, fraction)]
    held_out = {case for name in names for case in groups[name]}
    return Split(
        tuple(sorted(case for case in case_ids if case not in held_out)),
        tuple(sorted(held_out)),
        dict(sorted(of.items())),
        fold,
    )


def _check_count(patients: int, cases: int, fold: tuple[int, int] | None) -> None:
    needed = fold[1] if fold else 2
    if cases < needed:
        reason = "one for each fold" if fold else "one of them for validation"
        raise UserError(
            f"Expected at least {needed} cases, {reason}, but got {cases}.",
            "Add cases to the data folder.",
        )
    if patients < needed:
        raise UserError(
            f"Expected cases of at least {needed} patients, but the {cases} cases are of "
            f"{patients}, by their names without time points or by --patients.",
            "Add cases, or say who is who: --patients FILE.csv with the columns case and patient.",
        )


def _share(order: Sequence[str], sizes: Mapping[str, int], fraction: float) -> Iterator[str]:
    """Patients in their order, until their cases are as near to the share as they come."""
    total = sum(sizes.values())
    wanted = min(max(1, round(fraction * total)), total - 1)
    taken = 0
    for patient in order[:-1]:  # one is left to learn from
        if taken and taken + sizes[patient] / 2 > wanted:
            return
        yield patient
        taken += sizes[patient]


def _fold(order: Sequence[str], sizes: Mapping[str, int], number: int, count: int) -> list[str]:
    """The patients of a fold: those with most cases first, each to the fold with the fewest."""
    folds: list[list[str]] = [[] for _ in range(count)]
    filled = [0] * count
    for patient in sorted(order, key=lambda patient: -sizes[patient]):
        smallest = filled.index(min(filled))
        folds[smallest].append(patient)
        filled[smallest] += sizes[patient]
    return folds[number - 1]
