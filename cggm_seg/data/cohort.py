"""A cohort ready for training: its cases, cached and checked, and which of them it learns from."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from cggm.distributed import is_first_rank, shard, wait_for_ranks, world_size
from cggm.errors import DataError
from cggm.runs import check_problems, first_alone, share
from cggm_seg.data.cache import SliceCache, build_cache
from cggm_seg.data.cases import MODALITIES, Case, find_cases, has_simulated_cases, read_patients
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.labels import label_scheme
from cggm_seg.data.manifest import recorded_digests
from cggm_seg.data.split import Split, split_cases


class CohortOptions(Protocol):
    """What :func:`open_cohort` is told; ``BratsConfig`` says it."""

    @property
    def used(self) -> tuple[str, ...]:
        """The modalities that the network sees, in the order of its channels."""

    @property
    def missing(self) -> str:
        """Whether cases may lack modalities, ``allow``, or are left out then, ``refuse``."""

    @property
    def labels(self) -> str | None:
        """What label values mean, see :func:`cggm_seg.data.labels.label_scheme`."""

    @property
    def cache(self) -> Path | None:
        """Folder of the slice cache; ``.slices`` in the data folder if ``None``."""

    @property
    def manifest(self) -> Path | None:
        """Manifest of the data, or its folder; ``.verified`` in the data folder if ``None``."""

    @property
    def processes(self) -> int:
        """Processes that read and cache cases."""

    @property
    def strict(self) -> bool:
        """Whether a single bad case is an error."""

    @property
    def validation_fraction(self) -> float:
        """Share of the cases that is held out."""

    @property
    def patients(self) -> Path | None:
        """Table of who was examined; the names of the cases tell it if ``None``."""

    @property
    def folds(self) -> int | None:
        """Number of folds; a share of the cases is held out if ``None``."""

    @property
    def fold(self) -> int | None:
        """Number of the fold that is held out, from 1."""

    @property
    def seed(self) -> int:
        """Chooses the cases that are held out."""


@dataclass(frozen=True)
class Cohort:
    """The cases of a data folder, ready for training.

    Attributes:
        folder: Where the cases lie.
        cases: Those that can be trained on, by identifier.
        cache: Their slices, of the modalities that the network sees.
        split: Which of them the network learns from.
        problems: One error for each case that was left out.
    """

    folder: Path
    cases: dict[str, Case]
    cache: SliceCache
    split: Split
    problems: list[DataError]

    @cached_property
    def simulated(self) -> bool:
        """Whether there are cases of the simulator among these."""
        return has_simulated_cases(self.folder)

    @property
    def contents(self) -> dict[str, str]:
        """SHA-256 of the voxels of each case, the same however its files are compressed."""
        return {case_id: self.cache.content(case_id) for case_id in self.cases}

    @property
    def lacking(self) -> dict[str, list[str]]:
        """The cases that lack a modality which the network sees, by modality; others not named."""
        present = {case_id: self.cache.present(case_id) for case_id in self.cases}
        lacking = {
            name: [case_id for case_id, has in present.items() if not has[channel]]
            for channel, name in enumerate(self.cache.modalities)
        }
        return {name: ids for name, ids in lacking.items() if ids}


def open_cohort(folder: Path, options: CohortOptions) -> Cohort:
    """Finds the labelled cases of a folder, caches their slices and splits them.

    Cases that cannot be used are left out and listed. Where several ranks train, every one calls
    this; they share the work and get the same cohort.

    Args:
        folder: Where the cases lie, see ``find_cases``. What the manifest of a verification
            records, in the folder or where the options say, must still be what its files hold.
        options: What to cache and how to split.

    Raises:
        DataError: If the folder holds no case that can be used, or a bad one and
            ``options.strict`` is set.
        UserError: If fewer than two cases are left, or the cache cannot be written.
    """
    scheme = label_scheme(options.labels)
    cases, problems = find_cases(
        folder,
        labelled=True,
        allow_missing=options.missing == "allow",
        modalities=options.used,
        labels=scheme,
    )
    cases, blank = _seen(cases, options.used)
    problems += blank
    check_problems(cases, problems, strict=options.strict)
    cache, damaged = _cached(cases, folder, options)
    problems += damaged
    check_problems(cache.case_ids, problems, needed=2)
    good = {case.id: case for case in cases if case.id in cache.case_ids}
    split = _split(good, options)
    return Cohort(folder, good, cache.only(options.used), split, problems)


def _seen(cases: Sequence[Case], used: Sequence[str]) -> tuple[list[Case], list[DataError]]:
    """The cases as the network sees them, and an error for each of which it sees nothing."""
    if all(len(case.images) == len(MODALITIES) for case in cases):
        return list(cases), []  # cached as a whole, for trainings on other modalities as well
    seen = [
        replace(case, images={name: case.images[name] for name in used if name in case.images})
        for case in cases
    ]
    what = f"Expected at least one of {', '.join(used)}, but the case has none of them."
    fix = "Add an image, or take the case out of the folder."
    blank: list[DataError] = [
        Finding(Code.MISSING, case.id, None, what, fix) for case in seen if not case.images
    ]
    return [case for case in seen if case.images], blank


def _split(cases: Mapping[str, Case], options: CohortOptions) -> Split:
    """By patients, as a table or else the names of the cases tell them."""
    case_ids = [*cases]
    if options.patients is None:
        patients = {case_id: case.patient for case_id, case in cases.items()}
    else:
        patients = read_patients(options.patients, case_ids)
    fold = (options.fold, options.folds) if options.fold and options.folds else None
    return split_cases(
        case_ids, options.validation_fraction, options.seed, patients=patients, fold=fold
    )


def _cached(
    cases: Sequence[Case], folder: Path, options: CohortOptions
) -> tuple[SliceCache, list[DataError]]:
    """The cache of all cases; of several ranks each caches its share of them."""
    build = partial(
        build_cache,
        folder=options.cache or folder / ".slices",
        recorded=recorded_digests(folder, options.manifest),
        workers=options.processes,
        strict=options.strict,
        progress=is_first_rank(),
    )
    if world_size() > 1:
        with suppress(DataError):  # which the whole cache tells to all ranks
            build(shard(cases))
        wait_for_ranks()
    found = first_alone(lambda: build(cases))
    share(options.cache or folder / ".slices")  # nobody tidies up what this process reads
    return found
