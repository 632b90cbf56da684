"""Findings between cases: duplicates, exchanged modalities, odd geometry."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cggm_seg.data import CLASS_CODES, MODALITIES, Code, FileRecord, Finding
from cggm_seg.verification.modalities import swapped_modalities

_ENOUGH_LABELS = 3  # one or two gliomas may well be without enhancing tumor or necrosis


def cohort_findings(records: Sequence[FileRecord], data: Path) -> list[Finding]:
    """What shows in the records of the whole cohort.

    Args:
        records: One for each file that could be read.
        data: Folder that their paths are relative to.
    """
    ordered = sorted(records, key=lambda record: record.path)
    parts = (_empty_labels, _unused_classes, _duplicates, _swapped, _odd)
    return [finding for part in parts for finding in part(ordered, data)]


def _empty_labels(records: Sequence[FileRecord], data: Path) -> Iterator[Finding]:
    for record in records:
        if record.modality == "seg" and not record.voxels:
            what = "Expected a lesion, but the label map is empty."
            fix = "Check the label map; a case without lesion teaches background alone."
            yield Finding(Code.NO_LESION, record.case, data / record.path, what, fix)


def _unused_classes(records: Sequence[FileRecord], data: Path) -> Iterator[Finding]:
    """One finding for each class that none of the label maps holds, where there are some."""
    maps = [r for r in records if r.modality == "seg" and r.classes]
    if len(maps) < _ENOUGH_LABELS:
        return
    for number, name in enumerate(CLASS_CODES[1:], start=1):
        if not any(number in record.classes for record in maps):
            what = f"Expected {name} in some label map, but none of {len(maps)} holds it."
            fix = (
                "Say with --labels what their values mean, or know that a network which is "
                "trained on them never predicts it."
            )
            yield Finding(Code.UNUSED_CLASS, maps[0].case, data / maps[0].path, what, fix)


def _duplicates(records: Sequence[FileRecord], data: Path) -> Iterator[Finding]:
    groups = defaultdict(list)
    for record in records:
        if record.voxels:
            groups[record.voxels].append(record)
    for first, *others in groups.values():
        for other in others:
            same = "content" if other.sha256 == first.sha256 else "voxels"
            what = f"Expected every image once, but {first.path} has the same {same}."
            fix = "Find out which of the two it is, and restore the other or remove it."
            yield Finding(Code.DUPLICATE, other.case, data / other.path, what, fix)


def _swapped(records: Sequence[FileRecord], data: Path) -> Iterator[Finding]:
    cases: dict[str, dict[str, FileRecord]] = defaultdict(dict)
    for record in records:
        if record.statistics:
            cases[record.case][record.modality] = record
    statistics = {
        case: [images[modality].statistics for modality in MODALITIES]
        for case, images in cases.items()
        if len(images) == len(MODALITIES)
    }
    for case, seeming in swapped_modalities(statistics).items():
        for modality, other in zip(MODALITIES, seeming, strict=True):
            if modality != other:
                what = f"Expected a {modality} image, but as other cases go it looks like {other}."
                fix = "Look at the images of this case, and rename them if they are exchanged."
                yield Finding(Code.SWAPPED, case, data / cases[case][modality].path, what, fix)


def _odd(records: Sequence[FileRecord], data: Path) -> Iterator[Finding]:
    """One finding for each case that is not like most, where most are alike at all."""
    # The first file of a case stands for it: a file that differs from it is an error already.
    cases = {record.case: record for record in reversed(records) if not record.has_error}
    geometries = {case: _geometry(record) for case, record in cases.items()}
    if not cases:
        return
    usual, count = Counter(geometries.values()).most_common(1)[0]
    if count * 2 <= len(cases):  # a mixed cohort, in which no geometry is odd
        return
    for case, geometry in sorted(geometries.items()):
        if geometry != usual:
            what = f"Expected {usual} as in most cases, but found {geometry}."
            fix = "Resample the case like the others, or make sure that it is meant to be so."
            yield Finding(Code.ODD_GEOMETRY, case, data / cases[case].path, what, fix)


def _geometry(record: FileRecord) -> str:
    """Shape and spacing in the project's frame, into which any orientation is read."""
    shape, spacing = (
        " x ".join(f"{size:g}" for size in sizes) for sizes in (record.shape, record.spacing)
    )
    return f"{shape} voxels of {spacing} mm"
