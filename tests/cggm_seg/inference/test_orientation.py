"""A case saved in another orientation has the same labels, figures and picture."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.evaluation.folder import evaluate_folder
from cggm_seg.inference.cohort import predict_cases
from cggm_seg.inference.options import FileOptions
from tests.cggm_seg.data.test_orientation import CODES, OBLIQUE, lps_affine, reoriented, save
from tests.cggm_seg.nifti import case_file, write_case
from tests.cggm_seg.predicting import FLOAT32, trained_network

SHAPE = (40, 32, 12)
ROTATIONS = [(0.0, 0.0, 0.0), *OBLIQUE]
# Case to number of its rotation and orientation of its files.
CASES = {f"0-{codes}": (0, codes) for codes in CODES}
CASES |= {f"{k}-{codes}": (k, codes) for k in (1, 2, 3) for codes in ("LPS", *CODES[::7])}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """One case on a straight grid and on three oblique ones, each in many orientations."""
    folder = tmp_path_factory.mktemp("orientations")
    write_case(folder / "plain", "a", shape=SHAPE, seed=1)
    parts = {
        part: np.asarray(nib.load(case_file(folder / "plain", "a", part)).dataobj)
        for part in (*MODALITIES, "seg")
    }
    for name, (k, codes) in CASES.items():
        affine = lps_affine(ROTATIONS[k])
        for part, voxels in parts.items():
            # Label maps stay in LPS: prediction and reference then differ in orientation.
            where, wanted = ("reference", "LPS") if part == "seg" else ("images", codes)
            file = case_file(folder / where, name, part)
            file.parent.mkdir(parents=True, exist_ok=True)
            save(reoriented(nib.Nifti1Image(voxels, affine), wanted), file)
    return folder


@pytest.fixture(scope="module")
def predicted(cohort):
    cases, _ = find_cases(cohort / "images", labelled=False)
    assert len(cases) == len(CASES)
    files = FileOptions(probabilities=True)
    outcome = predict_cases(trained_network(), cases, cohort / "out", FLOAT32, files=files)
    assert not outcome.errors
    return cohort / "out"


def original(name):
    """The case of the same grid whose files are LPS."""
    return f"{CASES[name][0]}-LPS"


def test_labels_are_those_of_the_original_on_the_grid_of_the_file(cohort, predicted):
    for name, (_, codes) in CASES.items():
        found = nib.load(predicted / f"{name}.nii.gz")
        expected = reoriented(nib.load(predicted / f"{original(name)}.nii.gz"), codes)
        labels = np.asarray(found.dataobj)
        np.testing.assert_array_equal(labels, np.asarray(expected.dataobj), name)
        assert len(np.unique(labels)) > 2
        image = nib.load(case_file(cohort / "images", name, "flair"))
        np.testing.assert_array_equal(found.affine, image.affine)
        probabilities = np.asarray(nib.load(predicted / "probabilities" / f"{name}.nii.gz").dataobj)
        np.testing.assert_array_equal(probabilities.argmax(-1), np.where(labels == 4, 3, labels))


def test_volumes_in_milliliters_are_equal(predicted):
    records = {n: json.loads((predicted / "records" / f"{n}.json").read_text()) for n in CASES}
    for name, record in records.items():
        expected = records[original(name)]["volumes_ml"]
        assert record["volumes_ml"] == pytest.approx(expected, rel=1e-5)
        assert record["volumes_ml"]["ET"] > 0


def test_dice_and_hd95_are_equal(cohort, predicted):
    rows = evaluate_folder(predicted, cohort / "reference", progress=False).rows
    assert len(rows) == len(CASES)
    for name, row in rows.items():
        assert row == pytest.approx(rows[original(name)], rel=1e-5)
        assert 0.5 < row["dice_WT"] < 1
        assert 0 < row["hd95_WT"] < 300


def test_previews_are_equal_pixel_by_pixel(predicted):
    pictures = {n: np.asarray(Image.open(predicted / "previews" / f"{n}.png")) for n in CASES}
    for name, picture in pictures.items():
        expected = pictures[original(name)]
        # The caption names the case; all above it is the picture.
        np.testing.assert_array_equal(picture[:400], expected[:400], name)
        assert picture[:400].max() > 200


def test_a_mirrored_case_has_other_labels():
    """The network tells left from right, so that the tests above could fail."""
    from cggm_seg.inference.volume import predict_volume
    from tests.cggm_seg.predicting import brain_volume

    images, _ = brain_volume(SHAPE, seed=1)
    mirrored = predict_volume(trained_network(), images[:, ::-1], FLOAT32)[::-1]
    assert (mirrored != predict_volume(trained_network(), images, FLOAT32)).any()
