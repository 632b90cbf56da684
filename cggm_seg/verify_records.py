"""What the manifest keeps of a file that was read."""

import hashlib
from dataclasses import replace

import nibabel as nib
import numpy as np

from cggm_seg.manifest import Record
from cggm_seg.nifti import Volume
from cggm_seg.verify_alignment import lesion_voxels
from cggm_seg.verify_modalities import sample


def image_record(
    path: str,
    size: int,
    mtime_ns: int,
    case_id: str,
    modality: str,
    checks: str,
    volume: Volume,
    looks: list[float | None],
) -> Record:
    """The record of an image; for the arguments see :class:`cggm_seg.manifest.Record`."""
    height, width, depth = volume.array.shape
    voxels = sample(volume.array).T.astype(np.float32)
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
        voxels=_digest(voxels) if voxels.any() else "",
        looks=looks,
        checks=checks,
    )


def label_record(
    path: str,
    size: int,
    mtime_ns: int,
    case_id: str,
    modality: str,
    checks: str,
    volume: Volume,
    classes: np.ndarray,
) -> Record:
    """The record of a label map, of whose voxels the lesion alone counts."""
    record = image_record(path, size, mtime_ns, case_id, modality, checks, volume, [])
    lesion = lesion_voxels(classes)
    content = np.append(lesion, classes.T.ravel()[lesion])
    voxels = _digest(content) if lesion.size else ""
    return replace(record, voxels=voxels)


def _digest(values: np.ndarray) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
