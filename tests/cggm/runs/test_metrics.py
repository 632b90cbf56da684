import json

import pytest

from cggm.errors import UserError
from cggm.runs.metrics import (
    Metric,
    find_metric,
    is_registered,
    keep_metrics,
    learn_metrics,
    register_metrics,
    selection_score,
)

ECE = Metric("toy_ece", "calibration error", "lower", digits=2, unit="%")


def test_a_registered_metric_is_found_as_it_is():
    register_metrics(ECE)
    register_metrics(ECE)  # as a module that is imported again does
    assert find_metric("toy_ece") is ECE
    assert ECE.heading == "calibration error (%)"
    assert Metric("toy", "toy score", "higher").heading == "toy score"


def test_the_selection_takes_the_better_value_whatever_the_direction():
    register_metrics(ECE, Metric("toy_gain", "gain", "higher"))
    values = {"toy_ece": 0.25, "toy_gain": 0.5}
    assert selection_score(values, "toy_ece") == -0.25
    assert selection_score(values, "toy_gain") == 0.5


def test_an_unknown_metric_is_refused_with_a_remedy_and_no_direction_is_guessed():
    with pytest.raises(UserError, match="Unknown metric 'ece_of_nobody'") as refusal:
        find_metric("ece_of_nobody")
    assert 'register_metrics(Metric("ece_of_nobody", ...))' in refusal.value.fix
    with pytest.raises(UserError, match="Unknown metric"):
        selection_score({"ece_of_nobody": 0.5}, "ece_of_nobody")


def test_two_records_of_one_name_are_refused():
    register_metrics(ECE)
    with pytest.raises(ValueError, match="one record of the metric 'toy_ece'"):
        register_metrics(Metric("toy_ece", "calibration error", "higher"))
    assert find_metric("toy_ece") is ECE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a b", "label", "higher"), "`name` .* but got 'a b'"),
        (("", "label", "higher"), "`name`"),
        (("a", "label", "up"), "`direction` of a .* but got 'up'"),
        (("a", "label", "lower", -1), "`digits` of a .* but got -1"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Metric(*values)


def test_records_travel_with_a_run(tmp_path):
    file = tmp_path / "metric_records.json"
    register_metrics(ECE)
    keep_metrics(file)
    kept = {record["name"]: record for record in json.loads(file.read_text())}
    assert kept["toy_ece"] == {
        "name": "toy_ece",
        "label": "calibration error",
        "direction": "lower",
        "digits": 2,
        "unit": "%",
        "counts": False,
    }
    file.write_text(json.dumps([kept["toy_ece"] | {"name": "toy_foreign", "unit": ""}]))
    assert not is_registered("toy_foreign")
    learn_metrics(file)
    assert find_metric("toy_foreign") == Metric("toy_foreign", "calibration error", "lower", 2)
    learn_metrics(tmp_path / "absent.json")


def test_records_of_a_run_do_not_replace_known_ones_and_must_agree_on_the_direction(tmp_path):
    file = tmp_path / "metric_records.json"
    register_metrics(ECE)
    other = {"name": "toy_ece", "label": "ECE", "direction": "lower"}
    file.write_text(json.dumps([other]))
    learn_metrics(file)
    assert find_metric("toy_ece") is ECE
    file.write_text(json.dumps([other | {"direction": "higher"}]))
    with pytest.raises(UserError, match="higher values of the metric toy_ece are better there"):
        learn_metrics(file)


@pytest.mark.parametrize("text", ["{}", "[3]", '[{"name": "a"}]', '[{"name": "<b>"}]', "[" * 9999])
def test_damaged_records_are_refused(tmp_path, text):
    file = tmp_path / "metric_records.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"metric_records\.json"):
        learn_metrics(file)
