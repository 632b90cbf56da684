import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cggm.errors import DataError, UserError
from cggm_seg.data.cases import MODALITIES, find_cases
from cggm_seg.data.volumes import read_labels, write_labels
from cggm_seg.evaluation.folder import Evaluation, evaluate_folder, subset_names
from cggm_seg.evaluation.scores import METRICS, WORST_HD95
from tests.cggm_seg.nifti import AFFINE, SUFFIXES, write_case, write_volume
from tests.quantifiers import every


@pytest.fixture
def cohort(tmp_path) -> tuple[Path, Path]:
    """Three cases, one in the naming of 2023, and predictions equal to the reference."""
    reference, predictions = tmp_path / "reference", tmp_path / "predictions"
    predictions.mkdir()
    for seed, naming in enumerate(("2021", "2021", "2023")):
        write_case(reference, f"case_{seed}", seed=seed, naming=naming)
    cases, _ = find_cases(reference, labelled=True)
    for case in cases:
        classes, grid = read_labels(case.label, case.id, case.labels)
        write_labels(predictions / f"{case.id}.nii.gz", classes, grid, case.labels)
    return predictions, reference


def test_folder_of_perfect_predictions(cohort):
    evaluation = evaluate_folder(*cohort, progress=False)
    assert list(evaluation.rows) == ["case_0", "case_1", "case_2"]
    assert (evaluation.problems, evaluation.missing) == ([], [])
    assert evaluation.mean_dice == 1
    assert evaluation.statistics["std"] == dict.fromkeys(METRICS, 0)


def test_images_of_the_reference_may_be_missing(cohort):
    predictions, reference = cohort
    for modality in MODALITIES:
        (reference / "case_0" / f"case_0{SUFFIXES['2021'][modality]}.nii.gz").unlink()
    assert len(evaluate_folder(predictions, reference, progress=False).rows) == 3


def test_statistics_and_table(cohort):
    predictions, reference = cohort
    empty = np.zeros((48, 40, 24), np.uint8)
    write_volume(predictions / "case_1.nii.gz", empty)
    evaluation = evaluate_folder(predictions, reference, progress=False)
    assert evaluation.statistics["mean"]["dice_ET"] == pytest.approx(2 / 3)
    assert evaluation.statistics["std"]["dice_ET"] == pytest.approx(np.sqrt(1 / 3))
    assert evaluation.statistics["median"]["hd95_WT"] == 0
    assert evaluation.mean_dice == pytest.approx(2 / 3)
    lines = evaluation.table().splitlines()
    assert [line.split()[0] for line in lines if "-" not in line] == [
        *("case", "case_0", "case_1", "case_2", "mean", "sample", "median")
    ]
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split()[1:] == ["0.000"] * 3 + ["373.13"] * 3
    content = json.loads(evaluation.to_json(predictions=predictions, reference=reference))
    assert content["rows"]["case_1"]["hd95_TC"] == WORST_HD95
    assert content["missing"] == []


def spoil_shape(file: Path) -> None:
    write_volume(file, np.zeros((48, 40, 23), np.uint8))


def spoil_affine(file: Path) -> None:
    image = nib.load(file)
    write_volume(file, np.asarray(image.dataobj), AFFINE + np.eye(4)[3] * 0.01)


def spoil_labels(file: Path) -> None:
    write_volume(file, np.full((48, 40, 24), 7, np.uint8))


def spoil_stream(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_shape, "Expected shape"),
        (spoil_affine, "Expected the affine"),
        (spoil_labels, "Expected labels"),
        (spoil_stream, "truncated"),
        (Path.unlink, "Expected a prediction of this case"),
    ],
)
def test_bad_prediction_is_listed_and_the_others_are_scored(cohort, spoil, complaint):
    predictions, reference = cohort
    spoil(predictions / "case_1.nii.gz")
    evaluation = evaluate_folder(predictions, reference, progress=False)
    assert list(evaluation.rows) == ["case_0", "case_2"]
    (problem,) = evaluation.problems
    assert complaint in problem
    assert "case_1" in problem
    assert str(predictions / "case_1.nii.gz") in problem
    assert evaluation.missing == (["case_1"] if spoil is Path.unlink else [])
    with pytest.raises(DataError, match=complaint):
        evaluate_folder(predictions, reference, strict=True, progress=False)


def test_surplus_prediction_and_bad_reference_are_listed(cohort):
    predictions, reference = cohort
    (predictions / "case_0.nii.gz").rename(predictions / "stranger.nii.gz")
    spoil_stream(reference / "case_1" / "case_1_seg.nii.gz")
    evaluation = evaluate_folder(predictions, reference, progress=False)
    assert list(evaluation.rows) == ["case_2"]
    assert evaluation.missing == ["case_0"]
    assert [problem.split(",")[0] for problem in evaluation.problems] == [
        *("case_0", "stranger", "case_1")
    ]


def test_two_predictions_of_a_case_are_named_and_neither_is_scored(cohort):
    predictions, reference = cohort
    write_volume(predictions / "case_1.nii", np.zeros((48, 40, 24), np.uint8))
    evaluation = evaluate_folder(predictions, reference, progress=False)
    assert list(evaluation.rows) == ["case_0", "case_2"]
    [problem] = evaluation.problems
    assert "found case_1.nii and case_1.nii.gz" in problem
    assert evaluation.missing == ["case_1"]
    with pytest.raises(DataError, match="one prediction of this case"):
        evaluate_folder(predictions, reference, strict=True, progress=False)


def test_a_case_without_labels_is_one_problem_and_its_prediction_none(cohort):
    predictions, reference = cohort
    for case in ("case_0", "case_1"):
        (reference / case / f"{case}_seg.nii.gz").unlink()
    evaluation = evaluate_folder(predictions, reference, progress=False)
    assert list(evaluation.rows) == ["case_2"]
    assert [problem.split(",")[0] for problem in evaluation.problems] == ["case_0", "case_1"]
    assert every("Expected the label map" in problem for problem in evaluation.problems)


def test_advice_is_that_of_the_problem_where_nothing_can_be_scored(cohort):
    predictions, reference = cohort
    for file in predictions.iterdir():
        spoil_stream(file)
    with pytest.raises(UserError, match="truncated") as raised:
        evaluate_folder(predictions, reference, progress=False)
    assert "ame the prediction" not in str(raised.value)  # they are named as they should be


def test_folders_without_a_pair_are_refused(cohort, tmp_path):
    _, reference = cohort
    with pytest.raises(UserError, match="Expected a folder of predictions"):
        evaluate_folder(tmp_path / "nowhere", reference, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none can be scored"):
        evaluate_folder(tmp_path / "empty", reference, progress=False)


def test_subsets_of_four_modalities():
    subsets = subset_names(MODALITIES)
    assert len(subsets) == len(set(subsets)) == 15
    assert subsets[0] == MODALITIES
    assert subsets[1] == ("flair", "t1ce", "t1")
    assert subsets[-4:] == [(modality,) for modality in MODALITIES]


def test_deviation_of_a_single_case_is_unknown(cohort):
    predictions, reference = cohort
    for case_id in ("case_1", "case_2"):
        (predictions / f"{case_id}.nii.gz").unlink()
    evaluation = evaluate_folder(predictions, reference, progress=False)
    [line] = [line for line in evaluation.table().splitlines() if line.startswith("sample SD")]
    assert line.split()[2:] == ["-"] * 6
    content = json.loads(evaluation.to_json(predictions=predictions, reference=reference))
    assert set(content["statistics"]["std"].values()) == {None}
    assert content["statistics"]["mean"]["dice_WT"] == 1


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    evaluation = Evaluation({"a": {"dice_WT": float("nan")}}, {}, [], [])
    with pytest.raises(ValueError, match="JSON"):
        evaluation.to_json(predictions=tmp_path, reference=tmp_path)
