from pathlib import Path

import pytest

from cggm.errors import UserError
from cggm.runs.storage.forms import NUMBER, check_form

FILE = Path("run.json")
FORM = {
    "name": str,
    "seed": int,
    "note?": (str, None),
    "val_*": NUMBER,
    "scores?": {"*": [float]},
    "either?": (None, {"*": NUMBER}),
    "done?": bool,
}
FITTING = {"name": "a", "seed": 3}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"note": None, "val_acc": 0.5, "val_b": None, "unnamed": [[[]]]},
        {"scores": {"x": [1, 2.5], "y": []}, "either": None, "done": True},
        {"either": {"a": 1, "b": None}, "seed": -(2**63)},
        {"val_acc": float("nan"), "val_b": float("inf")},
    ],
)
def test_what_fits_passes(more):
    check_form({**FITTING, **more}, FORM, FILE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "its content to be an object, but got"),
        ({"name": "a"}, "an object with 'seed'"),
        ({**FITTING, "seed": "3"}, "seed to be a number, but got '3'"),
        ({**FITTING, "seed": True}, "seed to be a number, but got True"),
        ({**FITTING, "seed": 10**400}, "seed to be a number, but got 1000"),
        ({**FITTING, "note": 3}, "note to be a text or null, but got 3"),
        ({**FITTING, "val_acc": "high"}, "val_acc to be a number or null"),
        ({**FITTING, "scores": {"x": [1, "2"]}}, "scores, x, entry 2, to be a number"),
        ({**FITTING, "scores": {"x": 1}}, "scores, x to be a list"),
        ({**FITTING, "either": {"a": []}}, "either, a to be a number or null"),
        ({**FITTING, "either": 3}, "either to be null"),
        ({**FITTING, "done": 1}, "done to be true or false"),
    ],
)
def test_what_does_not_is_one_line_that_names_the_place(value, message):
    with pytest.raises(UserError, match=message) as refusal:
        check_form(value, FORM, FILE)
    assert str(refusal.value).startswith("run.json: expected ")
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)
