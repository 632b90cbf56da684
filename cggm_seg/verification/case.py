"""Verifies one case: every file on its own, then the files against each other."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from cggm_seg.data import (
    MODALITIES,
    Case,
    Code,
    Finding,
    Record,
    Volume,
    check_recorded,
    checks,
    geometry_findings,
    intensity_findings,
    nifti,
    read_volume,
    to_classes,
)
from cggm_seg.data import nifti as streams
from cggm_seg.verification import alignment as verify_alignment
from cggm_seg.verification import modalities as verify_modalities
from cggm_seg.verification.alignment import best_shift, lesion_voxels, outside_share
from cggm_seg.verification.modalities import modality_looks, sample


def file_record(
    path: str,
    size: int,
    mtime_ns: int,
    case_id: str,
    modality: str,
    checks: str,
    volume: Volume,
    classes: np.ndarray | None,
    looks: list[float | None],
    *,
    suspect: bool,
) -> Record:
    """The record of a file that holds a volume; for others see :class:`Record`.

    ``classes`` are those of a label map, of whose voxels the lesion alone counts, and ``None`` for
    an image.
    """
    height, width, depth = volume.array.shape
    return Record(
        path=path,
        size=size,
        mtime_ns=mtime_ns,
        sha256=volume.digest,
        case=case_id,
        modality=modality,
        shape=(height, width, depth),
        spacing=tuple(np.linalg.norm(volume.affine[:3, :3], axis=0).round(4).tolist()),
        orientation="".join(nib.aff2axcodes(volume.affine)),
        dtype=str(volume.header.get_data_dtype()),
        voxels=_image_digest(volume.array) if classes is None else _lesion_digest(classes),
        looks=looks,
        checks=checks,
        suspect=suspect,
    )


def _image_digest(array: np.ndarray) -> str:
    voxels = sample(array).T.astype(np.float32)
    return _digest(voxels) if voxels.any() else ""


def _lesion_digest(classes: np.ndarray) -> str:
    lesion = lesion_voxels(classes)
    return _digest(np.append(lesion, classes.T.ravel()[lesion])) if lesion.size else ""


def _digest(values: np.ndarray) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


_OUTSIDE = 0.01  # share of the lesion


@dataclass(frozen=True)
class CaseReport:
    """What the verification of a case came to.

    Attributes:
        records: One for each file that could be read, suspect where there is an error in it.
        findings: All of them, of all files.
    """

    records: list[Record]
    findings: list[Finding]


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
    return _Verification(case, data, recorded).report()


@cache
def checks_digest() -> str:
    """Identifies the code of the checks, by which a record knows what it was checked for."""
    modules = (checks, nifti, streams, verify_alignment, verify_modalities, sys.modules[__name__])
    code = "".join(inspect.getsource(module) for module in modules)
    return hashlib.sha256(code.encode()).hexdigest()[:12]


class _Verification:
    def __init__(self, case: Case, data: Path, recorded: Mapping[Path, str]) -> None:
        self._case = case
        self._data = data
        self._recorded = recorded
        self._files = case_files(case)
        self._times: dict[str, tuple[int, int]] = {}
        self._volumes: dict[str, Volume] = {}
        self._classes: np.ndarray | None = None
        self._looks: dict[str, list[float | None]] = {}
        self._findings: list[Finding] = []

    def report(self) -> CaseReport:
        for part in self._files:
            self._read(part)
        self._findings += self._geometry()
        self._findings += self._alignment()
        self._looks = self._compare_modalities()
        parts = [part for part in self._volumes if part != "seg" or self._classes is not None]
        return CaseReport([self._record(part) for part in parts], self._findings)

    def _record(self, part: str) -> Record:
        return file_record(
            self._files[part].relative_to(self._data).as_posix(),
            *self._times[part],
            self._case.id,
            part,
            checks_digest(),
            self._volumes[part],
            self._classes if part == "seg" else None,
            self._looks.get(part, []),
            suspect=self._is_faulty(part),
        )

    def _read(self, part: str) -> None:
        case, file = self._case, self._files[part]
        try:
            # Times come first: a file that changes meanwhile is then read again by the next run.
            self._times[part] = _size_and_time(file)
            volume = read_volume(file, case.id)
            self._volumes[part] = volume
            if part == "seg":
                self._classes = to_classes(case.id, file, volume.array, case.naming)
            else:
                self._findings += intensity_findings(case.id, file, volume.array)
            check_recorded(case.id, file, volume.digest, self._recorded.get(file))
        except Finding as finding:
            self._findings.append(finding)

    def _geometry(self) -> Iterator[Finding]:
        """Against the volume that most others agree with."""
        volumes = self._volumes

        def opposed(part: str) -> int:
            return sum(any(self._compare(part, other)) for other in volumes)

        reference = min(volumes, key=opposed, default="")
        for part in volumes:
            yield from self._compare(part, reference)

    def _compare(self, part: str, other: str) -> Iterator[Finding]:
        volumes = self._volumes
        file = self._files[part]
        return geometry_findings(self._case.id, file, volumes[part], volumes[other])

    def _alignment(self) -> Iterator[Finding]:
        case, classes = self._case, self._classes
        if case.label is None or classes is None:
            return
        images = [self._volumes[part].array for part in self._usable(classes.shape)]
        lesion = lesion_voxels(classes)
        if images and lesion.size:
            yield from _misplaced(case.id, case.label, images, classes, lesion)

    def _compare_modalities(self) -> dict[str, list[float | None]]:
        if not self._volumes:
            return {}
        parts = self._usable(next(iter(self._volumes.values())).array.shape)
        if tuple(parts) != MODALITIES:
            return {}
        images = [self._volumes[part].array for part in parts]
        classes = self._classes
        if classes is not None and classes.shape != images[0].shape:
            classes = None
        return dict(zip(parts, modality_looks(images, classes), strict=True))

    def _usable(self, shape: tuple[int, ...]) -> list[str]:
        return [
            part
            for part, volume in self._volumes.items()
            if part != "seg" and volume.array.shape == shape and not self._is_faulty(part)
        ]

    def _is_faulty(self, part: str) -> bool:
        return any(f.is_error and f.file == self._files[part] for f in self._findings)


def _misplaced(
    case_id: str, file: Path, images: list[np.ndarray], classes: np.ndarray, lesion: np.ndarray
) -> Iterator[Finding]:
    fix = "Register the label map to the images, or leave the case out."
    share = outside_share(images, lesion)
    if share > _OUTSIDE:
        what = f"Expected the lesion within the brain, but {share:.0%} of it lie outside."
        yield Finding(Code.OUTSIDE, case_id, file, what, fix)
    shift = best_shift(images, classes, lesion)
    if any(shift):
        what = (
            f"Expected the label map to fit the images, but moved by {shift} voxels it fits better."
        )
        yield Finding(Code.SHIFTED, case_id, file, what, fix)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # reading it says why
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
