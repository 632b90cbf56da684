import gzip
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from cggm.errors import DataError
from cggm_seg.data.cases import find_cases
from cggm_seg.data.labels import BRATS2021, SCHEMES
from cggm_seg.data.volumes import read_case, read_labels, write_labels
from tests.cggm_seg.nifti import AFFINE, anatomy, case_file, write_case, write_volume
from tests.disk import file_size_limit

SHAPE = (20, 18, 16)


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path, "a", shape=SHAPE)
    [case], _ = find_cases(tmp_path, labelled=True)
    return case


def stored(file):
    return np.asarray(nib.load(file).dataobj)


def overwrite(file, change):
    image = nib.load(file)
    write_volume(file, change(np.asarray(image.dataobj)))


def check_refused(case, file, match):
    with pytest.raises(DataError, match=match) as caught:
        read_case(case)
    assert caught.value.case == "a"
    assert caught.value.file == file
    assert caught.value.fix


def test_case_equals_what_nibabel_reads(case):
    volumes = read_case(case)
    expected = np.stack([stored(file) for file in case.images.values()])
    assert volumes.images.dtype == np.int16
    np.testing.assert_array_equal(volumes.images, expected)
    np.testing.assert_array_equal(volumes.grid.affine, AFFINE)


@pytest.mark.parametrize("naming", ["2021", "2023"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_survive_the_round_trip(tmp_path, naming, suffix):
    write_case(tmp_path, "a", shape=SHAPE, naming=naming, suffix=suffix)
    [case], _ = find_cases(tmp_path, labelled=True)
    volumes = read_case(case)
    _, truth = anatomy(SHAPE, np.random.default_rng(0))
    np.testing.assert_array_equal(volumes.label, truth)

    written = tmp_path / f"prediction{suffix}"
    write_labels(written, volumes.label, volumes.grid, SCHEMES[f"brats{naming}"])

    image, original = nib.load(written), nib.load(case.images["flair"])
    np.testing.assert_array_equal(stored(written), stored(case.label))
    assert image.get_data_dtype() == np.uint8
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "pixdim", "quatern_b"):
        assert image.header[field].tobytes() == original.header[field].tobytes()
    np.testing.assert_array_equal(read_labels(written, "a", SCHEMES[f"brats{naming}"])[0], truth)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", written.name])


def test_labels_of_another_shape_are_not_written(tmp_path, case):
    grid = read_case(case).grid
    with pytest.raises(ValueError, match="Expected shape"):
        write_labels(tmp_path / "x.nii.gz", np.zeros((3, 3, 3), np.uint8), grid, BRATS2021)
    assert not (tmp_path / "x.nii.gz").exists()


def test_full_disk_leaves_no_output_and_keeps_the_old_one(tmp_path, case):
    volumes = read_case(case)
    file = tmp_path / "out" / "a.nii"
    file.parent.mkdir()
    file.write_bytes(b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        write_labels(file, volumes.label, volumes.grid, BRATS2021)
    assert [p.name for p in file.parent.iterdir()] == ["a.nii"]
    assert file.read_bytes() == b"old"


def test_missing_file(case):
    case.images["t1"].unlink()
    check_refused(case, case.images["t1"], "does not exist")


def test_empty_file(case):
    case.images["t1"].write_bytes(b"")
    check_refused(case, case.images["t1"], "file is empty")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_gzip(case, share):
    file = case.images["t2"]
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    check_refused(case, file, "truncated or damaged")


def test_truncated_nii(tmp_path):
    write_case(tmp_path, "a", shape=SHAPE, suffix=".nii")
    [case], _ = find_cases(tmp_path, labelled=True)
    file = case.images["flair"]
    for length in (100, 2000):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(DataError):
            read_case(case)


def test_no_bit_flip_changes_an_image_unnoticed(case):
    file = case.images["flair"]
    content, truth = file.read_bytes(), stored(file)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            found = read_case(case).images[0]
        except DataError:
            refused += 1
        else:  # a flip in the name or time that gzip stores beside the data
            np.testing.assert_array_equal(found, truth)
    assert refused >= 290


def test_compression_is_told_by_content_and_not_by_the_ending(case):
    truth, file = read_case(case).images, case.images["t1"]
    plain = gzip.decompress(file.read_bytes())
    file.write_bytes(plain)
    np.testing.assert_array_equal(read_case(case).images, truth)
    other = file.with_suffix("")
    other.write_bytes(gzip.compress(plain))
    renamed = replace(case, images={**case.images, "t1": other})
    np.testing.assert_array_equal(read_case(renamed).images, truth)
    file.write_bytes(b"x" + gzip.compress(plain))
    check_refused(case, file, "header is of another kind")


def test_size_and_shape_come_with_the_advice_that_helps(case):
    file = case.images["t1"]
    for kind, shape, advice in (
        (np.float64, (256, 256, 192), "smaller type, float32 or int16"),
        (np.int16, (512, 512, 200), "Resample or crop"),
        (np.int16, (24, 22), "the whole volume"),
        (np.int16, (24, 22, 5, 2), "one file per modality"),
    ):
        nib.save(nib.Nifti1Image(np.zeros(shape, kind), np.eye(4)), file)
        check_refused(case, file, advice)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\0" * 600])
def test_file_that_is_not_nifti(case, content):
    case.images["t1"].write_bytes(gzip.compress(content))
    check_refused(case, case.images["t1"], "header is of another kind")


def test_header_that_declares_more_than_the_file_holds(case):
    header = nib.load(case.images["t1"]).header
    header.set_data_shape((700, 700, 700))
    header["vox_offset"] = 352
    case.images["t1"].write_bytes(gzip.compress(header.binaryblock + bytes(4000)))
    tracemalloc.start()
    check_refused(case, case.images["t1"], r"declares \(700, 700, 700\) voxels")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_stream_longer_than_its_header_declares(case):
    header = nib.load(case.images["t1"]).header
    content = gzip.decompress(case.images["t1"].read_bytes())
    header.set_data_shape((*SHAPE[:2], SHAPE[2] - 1))
    header["vox_offset"] = 352
    case.images["t1"].write_bytes(gzip.compress(header.binaryblock + content[348:]))
    check_refused(case, case.images["t1"], "but found more")


@pytest.mark.parametrize(
    ("field", "value"),
    [("datatype", 9999), ("vox_offset", np.nan), ("vox_offset", 1e9), ("srow_x", np.inf)],
)
def test_broken_header(case, field, value):
    file = case.images["t1"]
    content = gzip.decompress(file.read_bytes())
    header = nib.load(file).header
    header["vox_offset"] = 352
    header[field] = value
    file.write_bytes(gzip.compress(header.binaryblock + content[348:]))
    check_refused(case, file, "Expected a valid NIfTI header|Expected a file that can hold")


def test_four_dimensional_image(case):
    overwrite(case.images["t1"], lambda array: np.stack([array, array], -1))
    check_refused(case, case.images["t1"], "Expected a 3-D image")


def test_trailing_axis_of_length_one_is_dropped(case):
    truth = stored(case.images["t1"])
    overwrite(case.images["t1"], lambda array: array[..., None])
    volumes = read_case(case)
    np.testing.assert_array_equal(volumes.images[2], truth)


def test_scaling_of_the_file_is_applied(case):
    file = case.images["flair"]
    image = nib.load(file)
    truth = image.get_fdata()
    image.header.set_data_dtype(np.int16)
    scaled = nib.Nifti1Image(truth / 7, AFFINE, image.header)
    nib.save(scaled, file)
    volumes = read_case(case)
    assert volumes.images.dtype == np.float32
    np.testing.assert_allclose(volumes.images[0], nib.load(file).get_fdata(), rtol=1e-6)


def test_big_endian_and_mixed_types_are_read(case):
    file = case.images["t1"]
    truth = stored(file)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    nib.save(nib.Nifti1Image(truth.astype(">f4"), AFFINE, header), file)
    volumes = read_case(case)
    assert volumes.images.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(volumes.images[2], truth)


@pytest.mark.parametrize("part", ["t2", "seg"])
def test_shapes_disagree(tmp_path, case, part):
    file = case_file(tmp_path, "a", part)
    overwrite(file, lambda array: array[:-1])
    check_refused(case, file, "Expected shape")


@pytest.mark.parametrize("part", ["t2", "seg"])
def test_affines_disagree(tmp_path, case, part):
    file = case_file(tmp_path, "a", part)
    moved = AFFINE.copy()
    moved[2, 3] = 2e-3
    write_volume(file, stored(file), moved)
    check_refused(case, file, "Expected the affine")


def test_affines_within_tolerance_agree(tmp_path, case):
    file = case_file(tmp_path, "a", "seg")
    moved = AFFINE.copy()
    moved[2, 3] = 5e-4
    write_volume(file, stored(file), moved)
    assert read_case(case).label.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(case, value):
    def spoil(array):
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    overwrite(case.images["t1ce"], spoil)
    check_refused(case, case.images["t1ce"], "NaN or Inf in 1 of them")


def test_image_of_zeros(case):
    overwrite(case.images["t1ce"], np.zeros_like)
    check_refused(case, case.images["t1ce"], "all voxels are zero")


def test_case_without_images(case):
    with pytest.raises(DataError, match="at least one image"):
        read_case(replace(case, images={}))


@pytest.mark.parametrize(("value", "type_"), [(7, np.uint8), (-1, np.int16), (3.9999, np.float32)])
def test_unknown_label(case, value, type_):
    overwrite(case.label, lambda array: np.where(array == 4, type_(value), array.astype(type_)))
    check_refused(case, case.label, f"but found {value}")


@pytest.mark.parametrize(("naming", "hint"), [("2021", "brats2023"), ("2023", "brats2021")])
def test_label_of_the_other_scheme_names_the_cause(tmp_path, naming, hint):
    write_case(tmp_path, "a", shape=SHAPE, naming=naming)
    [case], _ = find_cases(tmp_path, labelled=True)
    own, other = (4, 3) if naming == "2021" else (3, 4)
    overwrite(case.label, lambda array: np.where(array == own, other, array))
    check_refused(case, case.label, hint)


def test_labels_stored_as_floats_are_read(case):
    truth = read_case(case).label
    overwrite(case.label, lambda array: array.astype(np.float64))
    classes = read_case(case).label
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, truth)
