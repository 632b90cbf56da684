import pytest

from cggm.errors import UserError
from cggm.runs.metrics import Metric, find_metric, register_metrics, selection_score

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
