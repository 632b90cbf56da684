"""Any of the 48 orientations, and oblique grids, are read into one frame and written back."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from cggm_seg.data.cases import find_cases
from cggm_seg.data.labels import BRATS2021, BRATS2023
from cggm_seg.data.nifti import read_volume
from cggm_seg.data.volumes import read_case, read_labels, write_labels
from cggm_seg.evaluation.folder import evaluate_case
from cggm_seg.inference.outputs import region_volumes, write_probabilities
from tests.cggm_seg.nifti import AFFINE, case_file, write_case

SHAPE = (9, 7, 5)
SPACING = (1.0, 0.8, 3.0)
CODES = [
    "".join(pair[side] for pair, side in zip(axes, sides, strict=True))
    for axes in permutations(("LR", "PA", "SI"))
    for sides in product((0, 1), repeat=3)
]
# Rotation vectors in radians; none turns an axis nearer to another one.
OBLIQUE = [(0.1, -0.2, 0.3), (-0.35, 0.1, 0.05), (0.0, 0.4, -0.3)]


def lps_affine(rotation=(0.0, 0.0, 0.0)):
    spin = np.cross(np.eye(3), rotation)
    angle = np.linalg.norm(rotation)
    turn = np.eye(3)
    if angle:
        turn += np.sin(angle) / angle * spin + (1 - np.cos(angle)) / angle**2 * spin @ spin
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) @ np.diag(SPACING)
    affine[:3, 3] = 20, 30, -10
    return affine


def reoriented(image, codes):
    now = orientations.io_orientation(image.affine)
    return image.as_reoriented(orientations.ornt_transform(now, orientations.axcodes2ornt(codes)))


def save(image, file):
    image.set_sform(image.affine, code=2)
    image.set_qform(None, code=0)
    nib.save(image, file)


GRIDS = [(codes, (0.0, 0.0, 0.0)) for codes in CODES] + [
    (codes, rotation) for rotation in OBLIQUE for codes in ("LPS", "RAS", "SLA", "AIR")
]


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize(("codes", "rotation"), GRIDS)
def test_volume_is_read_into_the_frame_and_written_on_its_own_grid(tmp_path, codes, rotation):
    affine, voxels = lps_affine(rotation), np.arange(315, dtype=np.int16).reshape(SHAPE)
    stored = reoriented(nib.Nifti1Image(voxels, affine), codes)
    save(stored, tmp_path / "a.nii.gz")

    volume = read_volume(tmp_path / "a.nii.gz", "a")
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.grid.spacing, SPACING, atol=1e-6)
    assert (volume.grid.shape, volume.grid.orientation) == (SHAPE, codes)

    classes = (voxels % 4).astype(np.uint8)
    write_labels(tmp_path / "b.nii.gz", classes, volume.grid, BRATS2023)
    written = nib.load(tmp_path / "b.nii.gz")
    expected = reoriented(nib.Nifti1Image(classes, affine), codes)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected.dataobj))
    assert (
        written.header.get_best_affine().tolist() == volume.grid.header.get_best_affine().tolist()
    )

    shares = np.stack([classes == k for k in range(4)]).astype(np.float32)
    write_probabilities(tmp_path / "p.nii.gz", shares, volume.grid)
    probabilities = nib.load(tmp_path / "p.nii.gz")
    assert probabilities.shape == (*expected.shape, 4)
    np.testing.assert_array_equal(
        np.asarray(probabilities.dataobj).argmax(-1), np.asarray(expected.dataobj)
    )
    assert region_volumes(classes, volume.grid.affine)["WT"] == pytest.approx(
        np.count_nonzero(classes) * 2.4 / 1000
    )


def test_files_of_one_case_may_differ_in_orientation(tmp_path):
    write_case(tmp_path, "a", shape=(20, 18, 12))
    [case], _ = find_cases(tmp_path, labelled=True)
    expected = read_case(case)
    for part, codes in {"flair": "RAS", "t1": "SPL", "t2": "PIR", "seg": "AIL"}.items():
        file = case_file(tmp_path, "a", part)
        image = nib.Nifti1Image.from_filename(file)
        save(reoriented(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), codes), file)

    found = read_case(case)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.label, expected.label)
    assert found.images.dtype == np.int16
    assert found.images.strides == expected.images.strides
    assert (found.grid.orientation, expected.grid.orientation) == ("RAS", "LPS")
    np.testing.assert_allclose(found.grid.affine, AFFINE)


def test_prediction_and_reference_may_differ_in_orientation(tmp_path):
    write_case(tmp_path / "in", "a", shape=(20, 18, 12))
    [case], _ = find_cases(tmp_path / "in", labelled=True)
    classes, grid = read_labels(case.label, "a", BRATS2021)
    prediction = np.roll(classes, (1, -1, 1), (0, 1, 2))
    write_labels(tmp_path / "lps.nii.gz", prediction, grid, BRATS2021)
    image = nib.Nifti1Image.from_filename(tmp_path / "lps.nii.gz")
    save(reoriented(image, "IPR"), tmp_path / "ipr.nii.gz")
    expected = evaluate_case(case, tmp_path / "lps.nii.gz", "brats2021")
    assert evaluate_case(case, tmp_path / "ipr.nii.gz", "brats2021") == expected
    assert 0 < expected["dice_WT"] < 1
