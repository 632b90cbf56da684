"""Search for cases: every file of a folder is part of a case, or is named as left over."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from cggm.errors import DataError, in_one_line
from cggm_seg.data.cases.case import MODALITIES, Case
from cggm_seg.data.cases.folder import DEEPEST, CaseFolder, file_names, read_folder
from cggm_seg.data.cases.naming import SUFFIXES, default_labels, is_volume
from cggm_seg.data.cases.walk import Walk
from cggm_seg.data.findings import Code, Finding
from cggm_seg.data.labels import LabelScheme
from cggm_seg.data.nifti import read_volume, says_simulated

logger = logging.getLogger(__name__)
_COHORT = "cohort.json"  # what the simulator calls the record of a cohort


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        cases: Every case with whatever files it has, by identifier.
        findings: One for each file that is missing, ambiguous or fits no naming scheme.
        notes: Sentences on files that were taken for what their names nearly say.
    """

    cases: list[Case]
    findings: list[Finding]
    notes: list[str]


def find_cases(
    folder: Path,
    *,
    labelled: bool,
    allow_missing: bool = False,
    modalities: Sequence[str] = MODALITIES,
    labels: LabelScheme | None = None,
) -> tuple[list[Case], list[DataError]]:
    """Finds every case in a folder and in the folders below it.

    File names decide; contents are read only where names leave open what labels mean. Files that
    were taken for what their names nearly say, and those that fit no naming scheme, are named in
    the log; hidden files and folders are ignored.

    Args:
        folder: Where ``<id>_flair.nii.gz`` (2021) or ``<id>-t2f.nii.gz`` (2023) and so on lie,
            all in one folder, in one folder per case, or deeper; see docs/verification.md for other
            names that are accepted.
        labelled: Whether every case must have a label map; if not, label maps are ignored.
        allow_missing: Whether a case may lack modalities. It may not where a file beside it could
            be the one that it lacks.
        modalities: Those that are needed; others are taken where they are.
        labels: What label values mean; told by names and contents where not given.

    Returns:
        The complete cases sorted by identifier, and one error for each of the others.

    Raises:
        DataError: If the folder does not exist, cannot be read, is empty or holds no case.
    """
    files = read_folder(folder)
    cases: list[Case] = []
    errors: list[DataError] = []
    for case_id in sorted(files.groups):
        case, problems = _case(files, case_id, labels)
        absent = [part for part in modalities if part not in case.images]
        near = files.near(case_id) if absent else []
        if absent and (near or not allow_missing):
            problems += [_missing(files, case_id, part, near) for part in absent]
        if labelled and case.label is None:
            problems.append(_missing(files, case_id, "seg", files.near(case_id, label=True)))
        if not labelled:
            case = replace(case, label=None, labels=_to_write(case.labels))
            if not case.images and not problems:
                problems.append(_missing(files, case_id, MODALITIES[0], near))
        if problems:
            errors.append(problems[0])
        else:
            cases.append(case)
    errors += files.locked_findings()
    for note in [*files.notes, *(f"{f.what} {f.fix}" for f in files.leftover_findings())]:
        _say_once(note)
    return _with_settled_labels(cases), errors


def survey_cases(folder: Path, labels: LabelScheme | None = None) -> Survey:
    """Finds every case in a folder, with whatever files it has, and all that is missing or odd.

    Use :func:`find_cases` for what can be trained on.

    Args:
        folder: As in :func:`find_cases`.
        labels: As in :func:`find_cases`.

    Returns:
        A label map counts as missing where another case has one.

    Raises:
        DataError: If the folder does not exist, cannot be read, is empty or holds no case.
    """
    files = read_folder(folder)
    labelled = any(item.part == "seg" for items in files.groups.values() for item in items)
    cases: list[Case] = []
    findings: list[Finding] = []
    for case_id in sorted(files.groups):
        case, problems = _case(files, case_id, labels)
        absent = [part for part in MODALITIES if part not in case.images]
        near = files.near(case_id) if absent else []
        cases.append(case)
        findings += [*problems, *(_missing(files, case_id, part, near) for part in absent)]
        if labelled and case.label is None:
            findings.append(_missing(files, case_id, "seg", files.near(case_id, label=True)))
    findings += [*files.locked_findings(), *files.leftover_findings()]
    return Survey(_with_settled_labels(cases), findings, files.notes)


def has_simulated_cases(folder: Path) -> bool:
    """Whether a folder, or one below it, holds simulated cases, wherever they were copied to.

    A simulated cohort has a ``cohort.json``, and each of its images says it in its header, of which
    the first one in each folder is read.

    Args:
        folder: The folder; one that cannot be read holds none.
    """
    if (folder.parent / _COHORT).is_file():
        return True
    seen = set()
    with suppress(OSError):
        for file in Walk(folder, DEEPEST).files():
            is_first = is_volume(file) and file.parent not in seen
            if file.name == _COHORT or (is_first and says_simulated(file)):
                return True
            seen |= {file.parent} if is_first else set()
    return False


def _case(
    files: CaseFolder, case_id: str, labels: LabelScheme | None
) -> tuple[Case, list[Finding]]:
    items = files.groups[case_id]
    by_part: dict[str, Path] = {}
    problems = _name_findings(case_id, items[0].file)
    for item in items:
        other = by_part.setdefault(item.part, item.file)
        if other != item.file:
            what = f"Expected one file for each image, but found {other} as well."
            fix = "Remove one of the two, or rename its case."
            problems.append(Finding(Code.AMBIGUOUS, case_id, item.file, what, fix))
    images = {part: by_part[part] for part in MODALITIES if part in by_part}
    scheme = labels or default_labels(items)
    patient = next((item.patient for item in items if item.patient), "")
    return Case(case_id, images, by_part.get("seg"), scheme, patient), problems


def _name_findings(case_id: str, file: Path) -> list[Finding]:
    if case_id.isprintable():
        return []
    what = "Expected a name that can be shown in one line, but it has a line break or the like."
    fix = "Rename the files of this case, and their folder."
    return [Finding(Code.BAD_NAME, in_one_line(case_id), file, what, fix)]


def _missing(files: CaseFolder, case_id: str, part: str, near: Sequence[Path]) -> Finding:
    sibling = files.groups[case_id][0]
    suffix = SUFFIXES[sibling.naming or "2021"][part]
    ending = ".nii" if sibling.file.name.lower().endswith(".nii") else ".nii.gz"
    wanted = sibling.file.with_name(f"{case_id}{suffix}{ending}")
    what = "label map" if part == "seg" else f"{part} image"
    if not near:
        said = f"Expected the {what} of this case, but there is no such file."
        fix = "Add the file, or take the case out of the folder."
    else:
        found = file_names(near)
        said = f"Expected the {what} of this case, but found {found}, whose name fits no scheme."
        fix = f"Rename it to {wanted.name} if it is the one; otherwise take it out of the folder."
    return Finding(Code.MISSING, case_id, wanted, said, fix)


def _with_settled_labels(cases: Sequence[Case]) -> list[Case]:
    """Decides between two label schemes by the first label map that only one of them explains."""
    settled: dict[tuple[LabelScheme, ...], LabelScheme] = {}
    for case in cases:
        rivals = case.labels.rivals
        if case.label is None or len(rivals) != 2 or rivals in settled:
            continue
        fitting = [scheme for scheme in rivals if _explains(scheme, case.id, case.label)]
        if len(fitting) == 1:
            settled[rivals] = fitting[0]
    return [replace(c, labels=settled.get(c.labels.rivals, c.labels)) for c in cases]


def _explains(scheme: LabelScheme, case_id: str, file: Path) -> bool:
    try:
        values = np.unique(np.rint(read_volume(file, case_id).array))
    except Finding:  # which reading the case reports
        return True
    return bool(np.isin(values, scheme.values).all())


def _to_write(scheme: LabelScheme) -> LabelScheme:
    """The scheme that label maps are written in: of several the first, which is said."""
    if not scheme.rivals:
        return scheme
    first = scheme.rivals[0]
    _say_once(
        f"Label maps are written as {first.name} ({first.meaning}), because names do not tell "
        f"{scheme.name}; --labels says otherwise."
    )
    return first


@cache
def _say_once(note: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several ranks the first speaks for all
        logger.warning("%s", note)
