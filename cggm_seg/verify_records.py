"""What the manifest keeps of a file that was read."""

import hashlib

import nibabel as nib
import numpy as np

from cggm_seg.manifest import Record
from cggm_seg.nifti import Volume
from cggm_seg.verify_alignment import lesion_voxels
from cggm_seg.verify_modalities import sample


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
    """The record of a file that holds a volume; for others see :class:`cggm_seg.manifest.Record`.

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
