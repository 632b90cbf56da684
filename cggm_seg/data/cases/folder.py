"""Folder of cases: all its volumes, sorted into cases by their names, or left over."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cggm.errors import DataError, in_one_line
from cggm_seg.data.cases.case import MODALITIES, is_time_point, patient_of
from cggm_seg.data.cases.naming import (
    NamedFile,
    forget_datasets,
    is_image,
    is_of,
    is_volume,
    may_be_contrast,
    names_modality,
    read_name,
)
from cggm_seg.data.cases.walk import Walk
from cggm_seg.data.findings import Code, Finding

DEEPEST = 6
"""Levels of folders below the one that is searched."""

_SHOWN = 20  # names in one sentence
# Words of images that no modality of BraTS can be mistaken for.
_OTHER_IMAGES = re.compile(
    r"(?<![a-z])(adc|dwi|swi|asl|dti|fa|md|perf|dsc|cbv|cbf|pet|ct|mask|brain|parenchyma)(?![a-z])",
    re.IGNORECASE,
)
_LABEL_MAPS = re.compile(r"mask|seg|gtv|label|lesion|tumou?r|(?<![a-z])(roi|pred)", re.IGNORECASE)
# Label maps of something that is no tumor.
_OTHER_LABELS = re.compile(
    r"brain|head|skull|tissue|ventric|cereb|hippo|vessel|(?<![a-z])(csf|gm|wm|aseg|aparc|parc)"
    r"(?![a-z])|parenchyma",
    re.IGNORECASE,
)
# Folders of many patients.
_COHORTS = re.compile(
    r"(.*[-_ ])?(hgg|lgg|gbm|site|cent(er|re)|hospital|institut\w*|cohort|fold|batch|group|set|"
    r"train(ing)?|val(id(ation)?)?|test(ing)?)([-_ ]?\w{1,3})?([-_ ](data|set|cases))?",
    re.IGNORECASE,
)


Groups = dict[str, list[NamedFile]]
"""Identifier of a case to its files."""


@dataclass(frozen=True)
class CaseFolder:
    """The volumes of a folder, sorted into cases.

    Attributes:
        root: The folder.
        groups: Identifier of a case to its files.
        leftover: Files that fit no naming scheme, or that another file of their case outranks.
        notes: Sentences on files that were taken for what their names nearly say, and on folders
            that were left out.
        locked: Folders that could not be read and may hold cases.
    """

    root: Path
    groups: Groups
    leftover: list[Path]
    notes: list[str]
    locked: Sequence[Path] = ()

    @cached_property
    def owners(self) -> Mapping[Path, set[str]]:
        """Folder to the cases that have files in it."""
        return _owners(self.groups)

    def near(self, case_id: str, *, label: bool = False) -> list[Path]:
        """Files left over that could be of a case: in its folder, or with its name.

        Args:
            case_id: The case.
            label: Whether its label map is looked for, and not an image.
        """
        homes = {item.file.parent for item in self.groups[case_id]}
        own = {folder for folder in homes if self.owners[folder] == {case_id}}
        theirs = (f"{case_id}_", f"{case_id}-", f"{case_id}.")
        return [
            file
            for file in self.leftover
            if (file.parent in own or file.name.startswith(theirs))
            and (_may_be_label(file) if label else _may_be_image(file))
        ]

    def locked_findings(self) -> list[Finding]:
        """One error for each folder that may hold cases and could not be read."""
        what = "Expected a folder that can be read, but the system refuses it."
        fix = "Change its permissions, or move it elsewhere."
        return [Finding(Code.UNREADABLE, folder.name, folder, what, fix) for folder in self.locked]

    def leftover_findings(self) -> list[Finding]:
        """One warning for each folder with volumes that fit no naming scheme."""
        by_folder = defaultdict(list)
        for file in self.leftover:
            by_folder[file.parent].append(file)
        findings = []
        for folder, found in sorted(by_folder.items()):
            ids = self.owners.get(folder, set())
            name = next(iter(ids)) if len(ids) == 1 else folder.name
            what = f"Expected names that tell case and modality, but found {file_names(found)}."
            fix = "Rename what belongs to a case, as <case>_t1ce.nii.gz; others are not used."
            if not all(map(is_volume, found)):
                fix = "Convert what belongs to a case to NIfTI, <case>_t1ce.nii.gz and so on."
            elif any(re.search(r"_\d{4}\.nii", file.name) for file in found):
                fix = "For channels of nnU-Net add its dataset.json. " + fix
            findings.append(Finding(Code.UNRECOGNIZED, name, found[0], what, fix))
        return findings


def read_folder(folder: Path) -> CaseFolder:
    """Sorts all volumes of a folder, and of those below it, into cases.

    Raises:
        DataError: If the folder does not exist, cannot be read, is empty or holds no case.
    """
    forget_datasets()
    walk = Walk(folder, DEEPEST)
    try:
        paths = sorted(walk.files())
    except OSError as error:
        what = f"Expected a folder, but {folder} cannot be read ({error.strerror})."
        raise DataError(str(folder), None, what, "Check the path and its permissions.") from error
    named = {path: item for path in paths if (item := read_name(path))}
    groups: Groups = defaultdict(list)
    for item in _identified(list(named.values()), folder):
        groups[item.id].append(item)
    notes = _join_capitals(groups)
    joined, strays = _join_strays(groups, folder)
    leftover = [path for path in paths if is_image(path) and path not in named] + strays
    leftover += _drop_small_groups(groups) + _drop_outranked(groups)
    notes += [*joined, *_guesses(groups), *walk.notes()]
    found = CaseFolder(folder, dict(groups), sorted(leftover), notes, walk.locked())
    if not groups:
        raise _no_cases(found, len(paths))
    return found


def file_names(files: Sequence[Path]) -> str:
    """The names of some files, in a sentence."""
    names = ", ".join(in_one_line(file.name) for file in files[:_SHOWN])
    return names + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")


def _may_be_image(file: Path) -> bool:
    other = _OTHER_IMAGES.search(file.name) or _LABEL_MAPS.search(file.name)
    return names_modality(file) or not other


def _may_be_label(file: Path) -> bool:
    """A name that says nothing may be that of a label map, but not one that says image."""
    if _OTHER_LABELS.search(file.name):
        return False
    return bool(_LABEL_MAPS.search(file.name)) or (_may_be_image(file) and not names_modality(file))


def _owners(groups: Groups) -> dict[Path, set[str]]:
    found = defaultdict(set)
    for case_id, items in groups.items():
        for item in items:
            found[item.file.parent].add(case_id)
    return found


def _identified(named: Sequence[NamedFile], root: Path) -> Iterator[NamedFile]:
    """Gives ``flair.nii.gz`` and the like the name of their folder, or of several folders."""
    homes = _homes([item for item in named if not item.id], root)
    names = _folder_names(set(homes.values()), root)
    for item in named:
        if item.id:
            yield item
            continue
        parts = names[homes[item.file]]
        who = _patient_folders(parts)
        patient = patient_of("_".join(who)) if len(parts) > 1 else ""
        yield replace(item, id="_".join(parts), patient=patient)


def _homes(nameless: Sequence[NamedFile], root: Path) -> dict[Path, Path]:
    """File to the folder of its case, above a folder that is that of the image alone.

    ``p1/0_FLAIR/NIFTI/FLAIR.nii.gz`` and ``p1/1_T1/NIFTI/T1.nii.gz`` are of one case, ``p1``.
    """
    homes = {}
    below = defaultdict(set)
    for item in nameless:
        for folder in item.file.parents:
            below[folder].add(item.part)
    for item in nameless:
        folders = [f for f in item.file.parents if f != root and root in f.parents]
        own = [f for f in folders if below[f] == {item.part} and is_of(f, item.part)]
        homes[item.file] = own[-1].parent if own else item.file.parent
    return homes


def _patient_folders(parts: Sequence[str]) -> Sequence[str]:
    """Of the folders that name a case those that say who was examined, a site or cohort first."""
    count = 1
    while count < len(parts) and _COHORTS.fullmatch(parts[count - 1]):
        count += 1
    return parts[:count]


def _folder_names(folders: Iterable[Path], root: Path) -> dict[Path, tuple[str, ...]]:
    """As many names of the folders above as it takes to tell them apart, and who was examined.

    ``p1/week-000/anat`` and ``p2/week-000/anat`` are told apart by all three. Folders on one level
    have equally many names, so that all examinations of ``p1`` are named after it.
    """
    paths = {folder: folder.relative_to(root).parts or (root.resolve().name,) for folder in folders}
    counts = {len(parts): 1 for parts in paths.values()}  # level to names
    while True:
        names = {folder: parts[-counts[len(parts)] :] for folder, parts in paths.items()}
        alike = Counter(names.values())
        unclear = [f for f, found in names.items() if alike[found] > 1 or is_time_point(found[0])]
        levels = {len(paths[folder]) for folder in unclear}
        longer = [level for level in levels if counts[level] < level]
        if not longer:
            return names
        for level in longer:
            counts[level] += 1


def _join_capitals(groups: Groups) -> list[str]:
    """Makes one case of ``p1_flair`` and ``P1_t1ce`` in one folder, which name one image once."""
    notes = []
    spellings = defaultdict(list)
    for case_id, items in groups.items():
        spellings[case_id.lower(), items[0].file.parent].append(case_id)
    for (_, folder), ids in spellings.items():
        items = [item for case_id in ids for item in groups[case_id]]
        once = len({item.part for item in items}) == len(items)
        if len(ids) > 1 and once and {item.file.parent for item in items} == {folder}:
            main, *others = sorted(ids, key=lambda case_id: (-len(groups[case_id]), case_id))
            groups[main] = [replace(item, id=main) for item in items]
            for other in others:
                del groups[other]
            notes.append(f"{' and '.join(others)} is taken for {main}, in other letters.")
    return notes


def _join_strays(groups: Groups, root: Path) -> tuple[list[str], list[Path]]:
    """Gives a case the files of another name in its folder that can only be its own.

    BraTS 2020 has a label map ``W39_1998.09.19_Segm.nii`` in the folder of a case; other data sets
    say ``_brain_t1.nii.gz`` of images and ``_tumorMask.nii.gz`` of the label map.

    Returns:
        A sentence on each of them, and single files beside the case that may be its own or not,
        which are no longer in a group.
    """
    notes: list[str] = []
    left: list[Path] = []
    for folder, ids in _owners(groups).items():
        whole = [i for i in ids if sum(f.part in MODALITIES for f in groups[i]) >= 2]
        if len(whole) != 1:
            continue
        main = whole[0]
        for other in sorted(ids - {main}):
            strays = groups[other]
            here = {item.file.parent for item in strays} == {folder}
            theirs = folder.resolve().name == main and folder != root
            kin = main.startswith((f"{other}_", f"{other}-")) or other.startswith(
                (f"{main}_", f"{main}-")
            )
            if not here or not (theirs or kin):
                continue
            del groups[other]
            rest = other.removeprefix(f"{main}_").removeprefix(f"{main}-")
            if _fit(strays, groups[main], rest):
                groups[main] += [replace(item, id=main) for item in strays]
                notes += [f"{s.file.name} is taken for the {s.part} of {main}." for s in strays]
            else:
                left += [item.file for item in strays]
    return notes, left


def _fit(strays: Sequence[NamedFile], items: Sequence[NamedFile], rest: str) -> bool:
    """Whether files are what a case lacks, by what their names say besides."""
    parts = {item.part for item in strays}
    if not parts.isdisjoint(item.part for item in items):
        return False
    other_label = "seg" in parts and _OTHER_LABELS.search(rest)
    return not other_label and not ("t1" in parts and may_be_contrast(rest))


def _drop_small_groups(groups: Groups) -> list[Path]:
    """Takes out, and returns, what is no case beside cases that follow a scheme to the letter."""
    official = any(item.naming for items in groups.values() for item in items)
    small = [
        case_id
        for case_id, items in groups.items()
        if official
        and sum(item.part in MODALITIES for item in items) < 2
        and not any(item.naming for item in items)
    ]
    return [item.file for case_id in small for item in groups.pop(case_id)]


def _drop_outranked(groups: Groups) -> list[Path]:
    """Takes out, and returns, near fits where another file of the case fits to the letter."""
    dropped = []
    for case_id, items in groups.items():
        official = {item.part for item in items if item.naming}
        groups[case_id] = [i for i in items if i.naming or i.part not in official]
        dropped += [i.file for i in items if not i.naming and i.part in official]
    return dropped


def _guesses(groups: Groups) -> Iterator[str]:
    taken = Counter(
        (item.part, item.pattern)
        for items in groups.values()
        for item in items
        if item.naming is None
    )
    for (part, pattern), count in sorted(taken.items()):
        number = "1 file" if count == 1 else f"{count} files"
        yield f"{number} named {pattern} {'is' if count == 1 else 'are'} taken for {part}."


def _no_cases(folder: CaseFolder, count: int) -> DataError:
    content = f"{count} other files" if count else "no file"
    if folder.leftover:
        content += f", such as {file_names(folder.leftover[:3])}"
    return DataError(
        str(folder.root),
        None,
        f"Expected BraTS cases, but found {content}, in folders up to {DEEPEST} levels deep.",
        "Name the files <case>_flair.nii.gz, _t1ce, _t1, _t2, _seg (2021) or "
        "<case>-t2f.nii.gz, -t1c, -t1n, -t2w, -seg (2023), in this folder or in one per case.",
    )
