"""Findings: what can be wrong with data, each kind with a stable code."""

from enum import StrEnum
from pathlib import Path

from cggm.errors import DataError


class Code(StrEnum):
    """Kinds of findings. The values are stable: scripts may rely on them."""

    MISSING = "missing-file"
    AMBIGUOUS = "ambiguous-file"
    UNRECOGNIZED = "unrecognized-file"
    BAD_NAME = "bad-name"
    UNREADABLE = "unreadable-file"
    DAMAGED = "damaged-file"
    CHANGED = "changed-file"
    DUPLICATE = "duplicate"
    NOT_NIFTI = "not-nifti"
    BAD_HEADER = "bad-header"
    TOO_LARGE = "too-large"
    NOT_3D = "not-3d"
    BAD_TYPE = "bad-type"
    NOT_FINITE = "not-finite"
    EMPTY = "empty-image"
    CONSTANT = "constant-image"
    BACKGROUND = "no-constant-background"
    NOT_STRIPPED = "not-skull-stripped"
    EXTREME = "extreme-intensities"
    RANGE = "range-too-wide"
    MAGNITUDE = "too-large-or-small"
    SHAPE = "shape-mismatch"
    AFFINE = "affine-mismatch"
    UNKNOWN_LABEL = "unknown-label"
    FRACTIONAL_LABEL = "fractional-label"
    OTHER_SCHEME = "label-of-other-scheme"
    NO_LESION = "no-lesion"
    UNUSED_CLASS = "class-in-no-case"
    OUTSIDE = "label-outside-brain"
    SHIFTED = "label-shifted"
    SWAPPED = "modalities-swapped"
    ODD_GEOMETRY = "odd-geometry"


MEANINGS: dict[Code, str] = {
    Code.MISSING: "a file that the case needs, or that the manifest records, does not exist",
    Code.AMBIGUOUS: "two files for one image of a case",
    Code.UNRECOGNIZED: "file names that fit no naming scheme",
    Code.BAD_NAME: "a name with a line break or another character that cannot be shown",
    Code.UNREADABLE: "the system refuses to read the file or the folder",
    Code.DAMAGED: "truncated, checksum wrong, or more or fewer voxels than the header declares",
    Code.CHANGED: "another content than the manifest records",
    Code.DUPLICATE: "the same voxels as another file of the data",
    Code.NOT_NIFTI: "not a single-file NIfTI-1 image",
    Code.BAD_HEADER: "contradictory, without an orientation, or with voxels outside 0.05 to 50 mm",
    Code.TOO_LARGE: "more voxels than the limit, or than the file can hold",
    Code.NOT_3D: "not three-dimensional",
    Code.BAD_TYPE: "voxels that are no real numbers of at most 64 bits",
    Code.NOT_FINITE: "NaN or Inf",
    Code.EMPTY: "nothing but zeros",
    Code.CONSTANT: "a single intensity besides the background",
    Code.BACKGROUND: "no single value around the brain: noise, or a head that is not cut off",
    Code.NOT_STRIPPED: "more than 2500 ml that are not background: a head, or wrong voxel sizes",
    Code.EXTREME: "a few voxels so far from all others that they are clipped",
    Code.RANGE: "intensities that 16 bits do not hold to a hundredth of their deviation",
    Code.MAGNITUDE: "intensities above 1e30, or all below 1e-30: single precision fails there",
    Code.SHAPE: "another shape than the other files of the case",
    Code.AFFINE: "another affine than the other files of the case, by 0.001 or more",
    Code.UNKNOWN_LABEL: "a label that the scheme does not know",
    Code.FRACTIONAL_LABEL: "labels that are no whole numbers, such as 3.9999",
    Code.OTHER_SCHEME: "labels that another scheme explains, or several",
    Code.NO_LESION: "a label map of nothing but background",
    Code.UNUSED_CLASS: "a class that no label map of three cases or more holds",
    Code.OUTSIDE: "lesion outside the brain",
    Code.SHIFTED: "the label map fits the images better when moved",
    Code.SWAPPED: "modalities look like each other's in the rest of the data",
    Code.ODD_GEOMETRY: "another shape or spacing than most cases",
}
"""One line for each code."""

WARNINGS = frozenset(
    {
        Code.UNRECOGNIZED,
        Code.EXTREME,
        Code.NO_LESION,
        Code.UNUSED_CLASS,
        Code.SWAPPED,
        Code.ODD_GEOMETRY,
    }
)
"""Codes that call for a look; all others are errors."""


class Finding(DataError):
    """Something wrong of a known kind: raised where reading cannot go on, else collected.

    Args:
        code: Its kind.
        case: Identifier of the case.
        file: The file that it is about.
        what: What was expected and what was found, one sentence.
        fix: What to do about it, one sentence.
    """

    def __init__(self, code: Code, case: str, file: Path | None, what: str, fix: str) -> None:
        super().__init__(case, file, what, fix)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[Code, str, Path | None, str, str]]:  # type: ignore[override]
        return type(self), (self.code, self.case, self.file, self.what, self.fix)

    @property
    def is_error(self) -> bool:
        """Whether it is more than a warning."""
        return self.code not in WARNINGS
