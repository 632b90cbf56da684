"""The ICBM152 anatomy that ships with nilearn, posed and bent at random on a BraTS grid.

Positions are millimeters from the brain center along LPS axes; template voxels are RAS at 1 mm.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from scipy import ndimage

from cggm.errors import UserError

FULL_SHAPE = (240, 240, 155)
"""Voxels per axis at 1 mm, hence the field of view in mm, whatever the shape of a case."""

Box = tuple[slice, slice, slice]
Axes = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions of the voxels along x, y and z in mm

_BRAIN_CENTER = (119.0, 110.0, 72.5)  # voxel of the full grid
_TEMPLATE_CENTER = (98.0, 117.5, 77.0)  # voxel of the template
_HALF_EXTENT = (78.0, 94.0, 78.0)  # mm around the brain center that can hold brain


@dataclass(frozen=True)
class Template:
    """Skull-stripped T1, gray and white matter, uint8 in 0-255, shape ``(197, 233, 189)``.

    ``seeds``, shape ``(N, 3)``, are voxels of cerebral white matter 16 mm below the surface.
    """

    t1: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True)
class Pose:
    """The map ``matrix @ position + offset`` to template voxels."""

    matrix: np.ndarray
    offset: np.ndarray

    def position(self, voxels: np.ndarray) -> np.ndarray:
        """Positions of template voxels, both of shape ``(N, 3)``."""
        return np.asarray((voxels - self.offset) @ np.linalg.inv(self.matrix).T)


@dataclass(frozen=True)
class Tissue:
    """Brain mask, ``(X, Y, Z)``, and at its N voxels T1 (0-255) and the tissue shares (0-1)."""

    brain: np.ndarray
    t1: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray


@cache
def load_template() -> Template:
    """Reads the template, once per process.

    Raises:
        UserError: If nilearn is not installed.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise UserError(
            "Expected the package nilearn, which ships the ICBM152 template, but did not find it.",
            "Install it with `pip install nilearn`.",
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    t1, gm, wm = (
        np.asarray(cast(Any, nib.load(folder / name)).dataobj)
        for name in (
            f"mni_icbm152_{p}_tal_nlin_sym_09a_converted.nii.gz" for p in ("t1", "gm", "wm")
        )
    )
    deep = ndimage.binary_erosion(t1[::4, ::4, ::4] > 0, iterations=4)
    deep &= wm[::4, ::4, ::4] > 200
    deep[:, :, :16] = False  # cerebellum and brain stem
    return Template(t1, gm, wm, np.argwhere(deep) * 4)


def brain_extent(shape: tuple[int, int, int]) -> tuple[Axes, Box]:
    """Positions and indices of the voxels that can hold brain, in the field of view at `shape`."""
    axes = [
        (np.arange(count) + 0.5) * (full / count) - 0.5 - center
        for count, full, center in zip(shape, FULL_SHAPE, _BRAIN_CENTER, strict=True)
    ]
    x, y, z = (
        slice(*np.searchsorted(axis, (-half, half)))
        for axis, half in zip(axes, _HALF_EXTENT, strict=True)
    )
    return (axes[0][x], axes[1][y], axes[2][z]), (x, y, z)


def box_around(axes: Axes, center: np.ndarray, reach: float) -> tuple[Axes, Box]:
    """Positions and indices of the voxels within `reach` mm of a point along each axis."""
    x, y, z = (
        slice(*np.searchsorted(axis, (middle - reach, middle + reach)))
        for axis, middle in zip(axes, center, strict=True)
    )
    return (axes[0][x], axes[1][y], axes[2][z]), (x, y, z)


def smooth_field(rng: np.random.Generator, axes: Axes, wavelength: float) -> np.ndarray:
    """Gaussian random field of mean 0 and variance 1, smooth over `wavelength` mm, float32."""
    bases = []
    for axis in axes:
        knots = np.arange(axis[0] - 2 * wavelength, axis[-1] + 2 * wavelength, wavelength)
        weights = np.exp(-(((axis[:, None] - knots) / wavelength) ** 2))
        bases.append((weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32))
    values = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    return cast(np.ndarray, np.einsum("abc,xa,yb,zc->xyz", values, *bases, optimize=True))


def random_pose(rng: np.random.Generator) -> Pose:
    """A small rotation and shift, and a scale that fits the template into the field of view."""
    spin = np.zeros((3, 3))
    spin[np.triu_indices(3, 1)] = rng.normal(0, 0.04, 3)
    rotation, triangle = np.linalg.qr(np.eye(3) + spin - spin.T)
    rotation *= np.sign(np.diag(triangle))
    scale = rng.uniform(0.89, 0.94) + rng.uniform(-0.015, 0.015, 3)
    matrix = np.diag([-1.0, -1.0, 1.0]) @ rotation / scale
    return Pose(matrix, np.array(_TEMPLATE_CENTER) + rng.uniform(-2, 2, 3))


def bent_voxels(
    rng: np.random.Generator,
    axes: Axes,
    pose: Pose,
    masses: Sequence[tuple[np.ndarray, float]],
) -> np.ndarray:
    """Template voxel of every position, bent at random and pushed aside by masses.

    Args:
        rng: Source of the bending, 3 mm at a scale of 40 mm and 0.8 mm at 14 mm.
        axes: The positions.
        pose: Where the template lies.
        masses: Center and radius in mm of each.

    Returns:
        Shape ``(3, X, Y, Z)``, float32.
    """
    x, y, z = (axis.astype(np.float32) for axis in axes)
    voxels = np.empty((3, len(x), len(y), len(z)), np.float32)
    rows = pose.matrix.astype(np.float32)
    for row, offset, out in zip(rows, pose.offset.astype(np.float32), voxels, strict=True):
        bend = 3.0 * smooth_field(rng, axes, 40) + 0.8 * smooth_field(rng, axes, 14)
        line = (row[0] * x + offset)[:, None, None] + row[1] * y[:, None] + row[2] * z
        np.add(bend, line, out=out)
    for center, radius in masses:
        near, box = box_around(axes, center, 2.5 * radius)
        away = np.stack(np.meshgrid(*near, indexing="ij")) - center[:, None, None, None]
        push = 0.4 * np.exp(-np.square(away).sum(0) / radius**2)
        voxels[:, *box] -= np.tensordot(pose.matrix, push * away, 1)
    return voxels


def sample_tissue(voxels: np.ndarray) -> Tissue:
    """The anatomy at the given template voxels; CSF is what is neither gray nor white, or dark."""
    template = load_template()
    brain = ndimage.map_coordinates(template.t1, voxels, order=0) > 30
    inside = voxels[:, brain]
    t1, gm, wm = (
        ndimage.map_coordinates(volume, inside, np.float32, order=1)
        for volume in (template.t1, template.gm, template.wm)
    )
    csf = np.clip(np.maximum(1 - (gm + wm) / 255, (150 - t1) / 105), 0, 1)
    rest = (1 - csf) / np.maximum(gm + wm, 1e-3)
    return Tissue(brain, t1, csf, gm * rest, wm * rest)
