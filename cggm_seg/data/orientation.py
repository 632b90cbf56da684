"""Orientation of volumes: a file may have any, inside the project there is one, LPS.

The first axis of an array leads to the patient's left, the second to the back, the third to the
head, so that ``array[..., z]`` is an axial slice. A :class:`Grid` leads from the axes of a file to
those and back; nothing between the reading and the writing of a file has to know of it.
"""

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from nibabel import orientations

FRAME = "LPS"
"""Where the axes of every array lead, in nibabel's codes."""


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file, seen from the project's frame.

    Of an oblique grid each axis counts as the one of the frame that it is closest to: voxels are
    moved, never interpolated.

    Args:
        header: Header of the file, three-dimensional.
    """

    header: nib.Nifti1Header

    @property
    def orientation(self) -> str:
        """Where the axes of the file lead, such as ``RAS``."""
        return "".join(nib.aff2axcodes(self.header.get_best_affine()))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the axes of the frame, ``(H, W, Z)``."""
        sizes = self.header.get_data_shape()
        height, width, depth = (sizes[int(axis)] for axis in np.argsort(self._into_frame[:, 0]))
        return height, width, depth

    @cached_property
    def affine(self) -> np.ndarray:
        """Voxel indices of the frame to millimeters in RAS+, as NIfTI has them, ``(4, 4)``."""
        indices = orientations.inv_ornt_aff(self._into_frame, self.header.get_data_shape())
        return np.asarray(self.header.get_best_affine() @ indices)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel along the axes of the frame, in mm."""
        height, width, depth = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return height, width, depth

    def to_frame(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of the file along the axes of the frame.

        Args:
            array: In the axes of the file, of the shape that its header has.

        Returns:
            Shape ``(H, W, Z)``.
        """
        return np.asarray(orientations.apply_orientation(array, self._into_frame))

    def from_frame(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of the project along the axes of the file, to be written.

        Args:
            array: In the project's frame, shape ``(H, W, Z)``, such as labels or the probabilities
                of one class.

        Raises:
            ValueError: If the shape is not that of the grid.
        """
        if array.shape != self.shape:
            raise ValueError(f"Expected shape {self.shape}, but got {array.shape}.")
        frame, file = orientations.axcodes2ornt(FRAME), self._from_file
        back = orientations.ornt_transform(frame, file)
        return np.asarray(orientations.apply_orientation(array, back))

    @cached_property
    def _from_file(self) -> np.ndarray:
        return np.asarray(orientations.io_orientation(self.header.get_best_affine()))

    @cached_property
    def _into_frame(self) -> np.ndarray:
        frame = orientations.axcodes2ornt(FRAME)
        return np.asarray(orientations.ornt_transform(self._from_file, frame))


def is_invertible(affine: np.ndarray) -> bool:
    """Whether an affine, ``(4, 4)``, gives each axis of a grid a direction and a size.

    An axis of next to no size beside the others has no direction in numbers of 64 bits, although
    the determinant is not 0.
    """
    if not np.isfinite(affine).all() or not np.linalg.det(affine):
        return False
    return not bool(np.isnan(orientations.io_orientation(affine)).any())
