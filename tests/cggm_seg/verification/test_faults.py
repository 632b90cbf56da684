"""What is wrong with a case is found, and by its code."""

import gzip
import os
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cggm_seg.data.findings import MEANINGS, WARNINGS, Code
from cggm_seg.data.manifest import manifest_file
from tests.cggm_seg.nifti import AFFINE, case_file, write_case, write_volume
from tests.cggm_seg.simulated import simulated_case
from tests.cggm_seg.verifying import found, stored, verify, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def change_voxels(change):
    return lambda file: write_volume(file, change(stored(file)))


def change_header(**fields):
    def change(file):
        header, content = nib.load(file).header, gzip.decompress(file.read_bytes())
        header["vox_offset"] = 352
        for name, value in fields.items():
            header[name] = value
        file.write_bytes(gzip.compress(header.binaryblock + content[348:]))

    return change


def move_affine(file):
    affine = AFFINE.copy()
    affine[0, 0] += 1e-3
    write_volume(file, stored(file), affine)


def fractional(array):
    return np.where(array == 4, np.float32(3.9999), array.astype(np.float32))


def with_value(value):
    def change(array):
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    return change


def flip(file):
    content = bytearray(file.read_bytes())
    content[-6] ^= 4  # of the checksum, which nibabel never reads
    file.write_bytes(content)


FAULTS = [
    (Code.DAMAGED, "t2", flip),
    (Code.DAMAGED, "t1", lambda file: file.write_bytes(file.read_bytes()[:-9])),
    (Code.DAMAGED, "t1", lambda file: file.write_bytes(file.read_bytes() + b"x")),
    (Code.DAMAGED, "t1", lambda file: file.write_bytes(b"")),
    (Code.NOT_NIFTI, "t1", lambda file: file.write_bytes(gzip.compress(b"<html>" * 100))),
    (Code.BAD_HEADER, "t1", change_header(srow_x=0)),
    # Beside 3e38 the other axes have no direction in 64 bits, though the determinant is not 0.
    (Code.BAD_HEADER, "t1", change_header(srow_z=[3e38, 0, 1, 0])),
    (Code.BAD_HEADER, "t1", change_header(sform_code=0, qform_code=0)),
    (Code.BAD_HEADER, "t1", change_header(qform_code=1, quatern_b=0, quatern_c=0, quatern_d=0)),
    (Code.BAD_HEADER, "t1", change_header(srow_x=[-1e-3, 0, 0, 0])),
    (Code.BAD_HEADER, "t1", change_header(srow_x=[-1e3, 0, 0, 0])),
    (Code.TOO_LARGE, "seg", change_header(dim=[3, 4000, 4000, 1000, 1, 1, 1, 1])),
    (Code.NOT_3D, "t1", change_voxels(lambda array: np.stack([array, array], -1))),
    (Code.BAD_TYPE, "t1", change_voxels(lambda array: array.astype(np.complex64))),
    (Code.NOT_FINITE, "flair", change_voxels(with_value(np.inf))),
    (Code.NOT_FINITE, "flair", change_voxels(with_value(np.nan))),
    (Code.NOT_FINITE, "seg", change_voxels(with_value(np.nan))),
    (Code.EMPTY, "t1ce", change_voxels(np.zeros_like)),
    (Code.CONSTANT, "t1ce", change_voxels(lambda array: np.where(array, 5, 0).astype(np.int16))),
    (Code.SHAPE, "flair", change_voxels(lambda array: array[:-1])),
    (Code.SHAPE, "seg", change_voxels(lambda array: array[..., :-1])),
    (Code.AFFINE, "flair", move_affine),
    (Code.AFFINE, "seg", move_affine),
    (Code.UNKNOWN_LABEL, "seg", change_voxels(lambda array: np.where(array == 4, 7, array))),
    (Code.FRACTIONAL_LABEL, "seg", change_voxels(fractional)),
    (Code.OTHER_SCHEME, "seg", change_voxels(lambda array: np.where(array == 4, 3, array))),
    (Code.NO_LESION, "seg", change_voxels(np.zeros_like)),
    (Code.OUTSIDE, "seg", change_voxels(lambda array: np.roll(array, 10, 0))),
    (Code.SHIFTED, "seg", change_voxels(lambda array: np.roll(array, 1, 2))),
    (Code.MISSING, "t1", lambda file: file.unlink()),
    (Code.MISSING, "seg", lambda file: file.unlink()),
    (Code.DUPLICATE, "t2", lambda file: shutil.copy(file.with_name("b_t1.nii.gz"), file)),
    (Code.DUPLICATE, "t2", lambda file: write_volume(file, stored(file.with_name("b_t1.nii.gz")))),
    (Code.DUPLICATE, "seg", lambda file: shutil.copy(case_file(file.parents[1], "a", "seg"), file)),
    (Code.AMBIGUOUS, "t1", lambda file: write_volume(file.with_suffix(""), stored(file))),
]


@pytest.mark.parametrize(("code", "part", "damage"), FAULTS)
def test_fault_is_found_with_its_code_twice(data, code, part, damage):
    file = case_file(data, "b", part)
    damage(file)
    expected = (code, "b", file.name)
    first = found(data)
    # A label map may be shifted and outside at once; nothing else comes with something else.
    assert [f for f in first if f[0] is not Code.SHIFTED or code is Code.SHIFTED] == [
        expected if code is not Code.AMBIGUOUS else (code, "b", "b_t1.nii.gz")
    ]
    assert found(data) == first


def test_class_that_no_label_map_holds_is_found_once_from_three_cases_on(data):
    for case in "abc":  # a mask of the whole tumor, which BraTS would take for necrosis
        change_voxels(lambda array: (array > 0).astype(np.uint8))(case_file(data, case, "seg"))
    assert found(data) == [(Code.UNUSED_CLASS, "a", "a_seg.nii.gz")] * 2
    assert [finding.what for finding in verify(data).findings] == [
        f"Expected {name} in some label map, but none of 3 holds it." for name in ("ED", "ET")
    ]
    shutil.rmtree(data / "c")
    assert Code.UNUSED_CLASS not in [code for code, *_ in found(data)]


def test_every_code_has_a_meaning_which_is_documented():
    assert set(MEANINGS) == set(Code)
    text = (Path(__file__).parents[3] / "docs" / "verification.md").read_text()
    for code, meaning in MEANINGS.items():
        severity = "warning" if code in WARNINGS else "error"
        assert f"| `{code.value}` | {severity} | {meaning} |" in text


def test_one_bad_file_hides_no_other(data):
    flip(case_file(data, "b", "flair"))
    case_file(data, "b", "t1ce").unlink()
    change_voxels(with_value(np.inf))(case_file(data, "b", "t1"))
    change_voxels(lambda array: array[:-1])(case_file(data, "b", "t2"))
    change_voxels(lambda array: np.where(array == 4, 3, array))(case_file(data, "b", "seg"))
    codes = {code for code, _, _ in found(data)}
    assert codes == {Code.DAMAGED, Code.MISSING, Code.NOT_FINITE, Code.SHAPE, Code.OTHER_SCHEME}


def test_geometry_of_the_first_image_is_not_the_measure(data):
    move_affine(case_file(data, "b", "flair"))
    assert found(data) == [(Code.AFFINE, "b", "b_flair.nii.gz")]


def test_case_of_another_geometry_is_a_warning(data):
    write_case(data, "d", shape=(24, 22, 18), seed=9)
    [finding] = verify(data).findings
    assert (finding.code, finding.case, finding.is_error) == (Code.ODD_GEOMETRY, "d", False)
    assert "24 x 22 x 16 voxels of 1 x 1 x 1 mm" in finding.what


def test_case_of_another_orientation_is_none(data):
    for part in ("flair", "t1ce", "t1", "t2", "seg"):
        file = case_file(data, "b", part)
        image = nib.Nifti1Image.from_filename(file)
        turned = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(image.dataobj), image.affine))
        write_volume(file, np.asarray(turned.dataobj), turned.affine)
    assert found(data) == []


def test_unlabelled_data_lacks_no_label_map(data):
    for case_id in "abc":
        case_file(data, case_id, "seg").unlink()
    assert found(data) == []


def test_exchanged_modalities_are_a_warning(tmp_path):
    names = ("flair", "t1ce", "t1", "t2")
    for index in range(6):
        images, classes = simulated_case(index)
        for name, image in zip(names, images, strict=True):
            write_volume(case_file(tmp_path, f"s{index}", name), image)
        labels = np.array([0, 1, 2, 4], np.uint8)[classes]
        write_volume(case_file(tmp_path, f"s{index}", "seg"), labels)
    one, other = (case_file(tmp_path, "s2", name) for name in ("flair", "t2"))
    assert found(tmp_path) == []
    manifest_file(tmp_path).unlink()
    for source, target in ((one, other.with_suffix(".tmp")), (other, one)):
        os.replace(source, target)
    os.replace(other.with_suffix(".tmp"), other)
    findings = verify(tmp_path).findings
    assert [(f.code, f.file) for f in findings] == [(Code.SWAPPED, one), (Code.SWAPPED, other)]
    assert not findings[0].is_error
    assert "looks like t2" in findings[0].what


@pytest.mark.parametrize(
    ("shape", "kind", "code"),
    [
        ((1000, 1000, 500), np.int16, Code.TOO_LARGE),
        ((256, 256, 255), np.float32, Code.DAMAGED),  # as large as allowed, and still too short
        ((24, 22, 16), np.int16, Code.DAMAGED),
    ],
)
def test_bomb_is_refused_in_little_more_memory_than_a_volume_may_take(data, shape, kind, code):
    file = case_file(data, "b", "t1")
    header = nib.load(file).header
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header["vox_offset"] = 352
    file.write_bytes(gzip.compress(header.binaryblock + bytes(100 << 20), 1))
    tracemalloc.start()
    assert found(data) == [(code, "b", file.name)]
    assert tracemalloc.get_traced_memory()[1] < 84 << 20
    tracemalloc.stop()


def test_gzip_of_several_members_and_padding_is_read(data):
    file = case_file(data, "b", "t1")
    content = gzip.decompress(file.read_bytes())
    parts = [gzip.compress(content[i : i + 999]) for i in range(0, len(content), 999)]
    file.write_bytes(b"".join(parts) + bytes(70000))
    assert found(data) == []
    file.write_bytes(b"".join(parts[:-1]))
    assert found(data) == [(Code.DAMAGED, "b", file.name)]
