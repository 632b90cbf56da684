import logging

import nibabel as nib
import numpy as np
import pytest

from cggm.errors import DataError, UserError
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.data.orientation import Grid
from cggm_seg.inference.cohort import predict_cases
from cggm_seg.inference.options import FileOptions
from cggm_seg.inference.outputs import region_volumes, write_probabilities
from cggm_seg.inference.volume import predict_probabilities, predict_volume
from tests.cggm_seg.nifti import AFFINE, case_file, write_case
from tests.cggm_seg.predicting import small_network, trained_network


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.mark.parametrize(("naming", "enhancing"), [("2021", 4), ("2023", 3)])
def test_cases_are_written_in_their_naming_and_space(network, tmp_path, naming, enhancing):
    for k in range(2):
        write_case(tmp_path / "in", f"case{k}", naming=naming, seed=k, shape=(64, 48, 20))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    predictions = predict_cases(network, cases, tmp_path / "new" / "out")
    assert not predictions.errors
    written = predictions.files
    assert written == [tmp_path / "new" / "out" / f"case{k}.nii.gz" for k in range(2)]
    image = nib.load(written[0])
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, AFFINE)
    labels = np.asarray(image.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, enhancing}
    assert (labels == enhancing).any()
    flair = nib.load(case_file(tmp_path / "in", "case0", "flair", naming))
    raw = np.stack(
        [
            np.asarray(nib.load(case_file(tmp_path / "in", "case0", name, naming)).dataobj)
            for name in MODALITIES
        ]
    )
    assert image.shape == flair.shape
    classes = np.where(labels == enhancing, 3, labels)
    assert (classes == predict_volume(network, raw)).mean() > 0.9999


def test_missing_modality_is_zero_filled_and_stated(network, tmp_path, caplog):
    write_case(tmp_path / "in", "whole", shape=(48, 32, 8))
    write_case(tmp_path / "in", "part", shape=(48, 32, 8))
    case_file(tmp_path / "in", "part", "t1ce").unlink()
    cases, _ = find_cases(tmp_path / "in", labelled=False, allow_missing=True)
    with caplog.at_level(logging.WARNING):
        predict_cases(network, [cases[0]], tmp_path / "part")
    assert "part: no t1ce" in caplog.text
    predict_cases(network, [cases[1]], tmp_path / "absent", absent=("t1ce",))
    part, absent = (
        np.asarray(nib.load(file).dataobj)
        for file in (tmp_path / "part" / "part.nii.gz", tmp_path / "absent" / "whole.nii.gz")
    )
    np.testing.assert_array_equal(part, absent)


def test_bad_case_is_listed_and_the_others_are_written(network, tmp_path):
    for name in ("a", "b", "c"):
        write_case(tmp_path / "in", name, shape=(32, 32, 4))
    damaged = case_file(tmp_path / "in", "b", "t1")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    labels_alone = FileOptions(previews=False)
    predictions = predict_cases(network, cases, tmp_path / "out", files=labels_alone)
    assert [file.name for file in predictions.written] == ["a.nii.gz", "c.nii.gz"]
    assert [(error.case, error.file) for error in predictions.errors] == [("b", damaged)]
    names = sorted(file.name for file in (tmp_path / "out").rglob("*.*"))
    assert names == ["a.json", "a.nii.gz", "c.json", "c.nii.gz", "summary.csv"]
    with pytest.raises(DataError, match="b"):
        predict_cases(network, cases[1:], tmp_path / "strict", strict=True)
    assert not list((tmp_path / "strict").iterdir())


def test_existing_predictions_are_kept_unless_told_otherwise(network, tmp_path):
    write_case(tmp_path / "in", "a", shape=(32, 32, 4))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    file = tmp_path / "a.nii.gz"
    file.write_text("mine")
    predictions = predict_cases(network, cases, tmp_path)
    assert not predictions.files
    assert "the file exists" in str(predictions.errors[0])
    assert file.read_text() == "mine"
    predictions = predict_cases(network, cases, tmp_path, files=FileOptions(overwrite=True))
    assert predictions.written == [file]
    assert nib.load(file).shape == (32, 32, 4)


def test_case_without_a_modality_of_the_network_is_listed(tmp_path):
    write_case(tmp_path / "in", "a", shape=(32, 32, 4))
    case_file(tmp_path / "in", "a", "flair").unlink()
    cases, _ = find_cases(tmp_path / "in", labelled=False, allow_missing=True)
    network = small_network(("flair",)).eval()
    predictions = predict_cases(network, cases, tmp_path / "out")
    assert not predictions.files
    [error] = predictions.errors
    assert not list((tmp_path / "out").iterdir())
    assert "at least one of flair" in str(error)


def test_network_of_fewer_modalities_reads_its_own(tmp_path):
    write_case(tmp_path / "in", "a", shape=(32, 32, 4))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    network = small_network(("t2", "flair")).eval()
    [file] = predict_cases(network, cases, tmp_path / "out").written
    raw = np.stack(
        [
            np.asarray(nib.load(case_file(tmp_path / "in", "a", name)).dataobj)
            for name in ("t2", "flair")
        ]
    )
    labels = np.asarray(nib.load(file).dataobj)
    expected = predict_volume(network, raw)
    assert (np.where(labels == 4, 3, labels) == expected).mean() > 0.9999


@pytest.mark.parametrize("inside", [False, True])
def test_unwritable_output_ends_the_run_with_one_message(network, tmp_path, inside):
    write_case(tmp_path / "in", "a", shape=(32, 32, 4))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    output = tmp_path / "out"
    if inside:  # the label map's name is taken by a folder
        (output / "a.nii.gz" / "x").mkdir(parents=True)
    else:
        output.write_text("a file")
    with pytest.raises(UserError, match="out"):
        predict_cases(network, cases, output, files=FileOptions(overwrite=True))


def test_probabilities_lie_beside_in_the_space_of_the_images(network, tmp_path):
    write_case(tmp_path / "in", "a", shape=(64, 48, 20))
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    predict_cases(network, cases, tmp_path / "out", files=FileOptions(probabilities=True))
    image = nib.load(tmp_path / "out" / "probabilities" / "a.nii.gz")
    flair = nib.load(case_file(tmp_path / "in", "a", "flair"))
    assert image.shape == (*flair.shape, 4)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, AFFINE)
    for code in ("sform_code", "qform_code"):
        assert image.header[code] == flair.header[code]
    probabilities = image.get_fdata()
    raw = [nib.load(case_file(tmp_path / "in", "a", name)).dataobj for name in MODALITIES]
    expected = predict_probabilities(network, np.stack([np.asarray(array) for array in raw]))
    np.testing.assert_allclose(probabilities, np.moveaxis(expected, 0, -1), atol=2**-16)
    labels = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(probabilities.argmax(-1), np.where(labels == 4, 3, labels))
    assert len(np.unique(labels)) > 1


def test_probabilities_of_a_big_endian_image_are_read_back(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_shape((5, 4, 3))
    header.set_sform(AFFINE, code=2)
    grid = Grid(header)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (5, 4, 3)).astype(np.float32)
    write_probabilities(tmp_path / "a.nii.gz", np.moveaxis(probabilities, -1, 0), grid)
    np.testing.assert_allclose(
        nib.load(tmp_path / "a.nii.gz").get_fdata(), probabilities, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"\(5, 4, 3\), but got \(4, 3, 4\)"):
        write_probabilities(tmp_path / "b.nii.gz", probabilities, grid)


def test_absent_images_are_not_read_and_unknown_ones_are_refused(network, tmp_path, caplog):
    write_case(tmp_path / "in", "a", shape=(32, 32, 4))
    case_file(tmp_path / "in", "a", "t1").write_bytes(b"damaged")
    cases, _ = find_cases(tmp_path / "in", labelled=False)
    with caplog.at_level(logging.WARNING):
        predictions = predict_cases(network, cases, tmp_path / "out", absent=["t1"])
    assert len(predictions.written) == 1
    assert "t1: replaced by zeros in every case" in caplog.text
    with pytest.raises(UserError, match="t1gd"):
        predict_cases(network, cases, tmp_path / "new", absent=["t1gd"])
    assert not (tmp_path / "new").exists()


def test_volumes_are_counted_in_milliliters():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0, :, :5], labels[1, :, 0], labels[2, 0] = 2, 1, 3
    affine = np.diag([-1.0, -2.0, 2.5, 1])  # 5 cubic millimeters
    expected = {"WT": 70 * 0.005, "TC": 20 * 0.005, "ET": 10 * 0.005}
    assert region_volumes(labels, affine) == pytest.approx(expected)
