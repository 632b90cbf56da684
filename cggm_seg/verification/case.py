"""One case under verification: each of its files alone, then the files against each other."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cggm_seg.data import (
    MODALITIES,
    Case,
    Code,
    FileRecord,
    Finding,
    Volume,
    check_recorded,
    geometry_findings,
    intensity_findings,
    prepare_image,
    read_volume,
    to_classes,
)
from cggm_seg.verification.alignment import FARTHEST, best_shift, lesion_voxels, outside_share
from cggm_seg.verification.modalities import modality_statistics, subsampled

FORMAT = 7
"""Version of the checks and of what their records say, to be raised by hand with either.

Files that were verified in another version are read again. A test holds the outcome of a fixed
case, so that a change of it is noticed.
"""

_OUTSIDE = 0.01  # share of the lesion that may lie outside: registration blurs the brain's edge


@dataclass(frozen=True)
class CaseReport:
    """What the verification of a case came to.

    Attributes:
        records: One for each file that could be read, marked where there is an error in it.
        findings: All of them, of all files.
    """

    records: list[FileRecord]
    findings: list[Finding]


@dataclass(frozen=True)
class _CaseFile:
    """A file of a case that could be read.

    Attributes:
        part: Its modality, or ``seg``.
        path: Where it is.
        size: Bytes.
        mtime_ns: Modification time in nanoseconds, from before it was read.
        volume: Its voxels and their grid.
        classes: Classes 0 to 3 of a label map; ``None`` for an image, or where a label is unknown.
    """

    part: str
    path: Path
    size: int
    mtime_ns: int
    volume: Volume
    classes: np.ndarray | None

    @property
    def is_label_map(self) -> bool:
        return self.part == "seg"

    def has_error(self, findings: Sequence[Finding]) -> bool:
        return any(finding.is_error and finding.file == self.path for finding in findings)

    def voxel_digest(self) -> str:
        """Identifies the image, or the lesion of a label map, whatever type stores it.

        Empty where there is nothing but zeros, which all empty label maps share.
        """
        if self.classes is None:
            with np.errstate(over="ignore"):  # which another finding tells
                voxels = subsampled(self.volume.array).T.astype(np.float32)
            return _digest(voxels) if voxels.any() else ""
        lesion = lesion_voxels(self.classes)
        if not lesion.size:
            return ""
        return _digest(np.append(lesion, self.classes.T.ravel()[lesion]))

    def lesion_classes(self) -> list[int]:
        """Classes 1 to 3 that a label map holds, ascending; none of an image."""
        if self.classes is None:
            return []
        flat: list[int] = np.unique(self.classes.ravel(order="K")).tolist()
        return [number for number in flat if number]


def case_files(case: Case) -> dict[str, Path]:
    """Modality, or ``seg``, to file."""
    return {**case.images, **({"seg": case.label} if case.label else {})}


def verify_case(case: Case, data: Path, recorded: Mapping[Path, str]) -> CaseReport:
    """Reads every file of a case once and lists all that is wrong with any of them.

    Args:
        case: The case, with whatever files it has.
        data: Folder that the paths of the records are relative to.
        recorded: File to the SHA-256 that it should have.
    """
    files: list[_CaseFile] = []
    findings: list[Finding] = []
    for part, path in case_files(case).items():
        file, wrong = _read(case, part, path, recorded.get(path))
        files += [file] if file else []
        findings += wrong
    findings += _geometry_findings(case, files)
    findings += _alignment_findings(case, files, _sound_images(files, findings))
    statistics = _statistics(files, _sound_images(files, findings))
    records = [
        _record(case, file, data, statistics.get(file.part, []), file.has_error(findings))
        for file in files
        if not file.is_label_map or file.classes is not None
    ]
    return CaseReport(records, findings)


def _read(
    case: Case, part: str, path: Path, recorded: str | None
) -> tuple[_CaseFile | None, list[Finding]]:
    """One file and what is wrong with it alone; no file where its voxels cannot be read."""
    # Times come first: a file that changes meanwhile is then read again by the next run.
    size, mtime_ns = _size_and_time(path)
    try:
        volume = read_volume(path, case.id)
    except Finding as finding:
        return None, [finding]
    classes = None
    findings: list[Finding] = []
    try:
        if part == "seg":
            classes = to_classes(case.id, path, volume, case.labels)
        else:
            findings += intensity_findings(case.id, path, volume)
            if not any(finding.is_error for finding in findings):
                volume = replace(volume, array=prepare_image(volume.array))
        check_recorded(case.id, path, volume.digest, recorded)
    except Finding as finding:
        findings.append(finding)
    return _CaseFile(part, path, size, mtime_ns, volume, classes), findings


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # reading it says why
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _geometry_findings(case: Case, files: Sequence[_CaseFile]) -> Iterator[Finding]:
    """Against the volume that most others agree with, so that the odd one out is named."""

    def compare(file: _CaseFile, other: _CaseFile) -> Iterator[Finding]:
        return geometry_findings(case.id, file.path, file.volume, other.volume)

    def disagreeing(file: _CaseFile) -> int:
        return sum(any(compare(file, other)) for other in files)

    if not files:
        return
    reference = min(files, key=disagreeing)
    for file in files:
        yield from compare(file, reference)


def _sound_images(files: Sequence[_CaseFile], findings: Sequence[Finding]) -> list[_CaseFile]:
    """Images without an error, which alone can say something about the other files."""
    return [file for file in files if not file.is_label_map and not file.has_error(findings)]


def _label_map(files: Sequence[_CaseFile]) -> _CaseFile | None:
    return next((file for file in files if file.classes is not None), None)


def _alignment_findings(
    case: Case, files: Sequence[_CaseFile], images: Sequence[_CaseFile]
) -> Iterator[Finding]:
    """Whether the label map lies where the images show a lesion."""
    label = _label_map(files)
    if label is None or label.classes is None:
        return
    classes, lesion = label.classes, lesion_voxels(label.classes)
    arrays = [i.volume.array for i in images if i.volume.array.shape == classes.shape]
    if not arrays or not lesion.size:
        return
    fix = "Register the label map to the images, or leave the case out."
    share = outside_share(arrays, lesion)
    if share > _OUTSIDE:
        what = f"Expected the lesion within the brain, but {share:.0%} of it lie outside."
        yield Finding(Code.OUTSIDE, case.id, label.path, what, fix)
    shift = best_shift(arrays, classes, lesion)
    if shift is None:
        what = (
            "Expected the label map to fit the images, but it fits other places better, the best "
            f"of them more than {FARTHEST} voxels away or none clearly."
        )
        yield Finding(Code.SHIFTED, case.id, label.path, what, fix)
    elif any(shift):
        what = (
            f"Expected the label map to fit the images, but moved by {shift} voxels it fits better."
        )
        yield Finding(Code.SHIFTED, case.id, label.path, what, fix)


def _statistics(
    files: Sequence[_CaseFile], images: Sequence[_CaseFile]
) -> dict[str, list[float | None]]:
    """What tells the modalities apart, where all of them are there and on one grid."""
    shape = files[0].volume.array.shape if files else ()
    images = [image for image in images if image.volume.array.shape == shape]
    if tuple(image.part for image in images) != MODALITIES:
        return {}
    label = _label_map(files)
    classes = label.classes if label and label.volume.array.shape == shape else None
    rows = modality_statistics([image.volume.array for image in images], classes)
    return dict(zip(MODALITIES, rows, strict=True))


def _record(
    case: Case, file: _CaseFile, data: Path, statistics: list[float | None], has_error: bool
) -> FileRecord:
    volume = file.volume
    height, width, depth = volume.array.shape
    return FileRecord(
        path=file.path.relative_to(data).as_posix(),
        size=file.size,
        mtime_ns=file.mtime_ns,
        sha256=volume.digest,
        case=case.id,
        modality=file.part,
        shape=(height, width, depth),
        spacing=tuple(np.round(volume.grid.spacing, 4).tolist()),
        orientation=volume.grid.orientation,
        dtype=str(volume.grid.header.get_data_dtype()),
        voxels=file.voxel_digest(),
        statistics=statistics,
        format=FORMAT,
        has_error=has_error,
        classes=file.lesion_classes(),
    )


def _digest(values: np.ndarray) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
