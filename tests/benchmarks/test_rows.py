"""Rows of the benchmark: no method is forgotten, each trains, and controls replay what they say."""

from dataclasses import replace

import pytest
import torch

from benchmarks.known import rows, training
from benchmarks.known.training import Case, Replay, Row
from cggm.methods import published_methods

CASE = Case("classification", "a", "sgd", 7)
IMAGES = {"PASSION"}


def test_every_method_has_a_row_or_a_reason():
    having = {name for row in rows.METHODS.values() for name in row.method.split("+")}
    assert not having & set(rows.LEFT_OUT)
    assert having | set(rows.LEFT_OUT) == set(published_methods())
    assert set(rows.ROWS) <= having
    told = [*rows.CORE, *rows.RIVALS, *rows.CONTROLS]
    assert len(told) == len(set(told)) == len(rows.METHODS)
    assert len(rows.METHODS) > 50


@pytest.mark.parametrize("label", [*rows.RIVALS, *rows.CONTROLS])
def test_every_row_trains(label):
    case = replace(CASE, task="segmentation") if label in IMAGES else CASE
    found = training.run(case, rows.METHODS[label], 1)
    if label in IMAGES:  # all background after an epoch
        assert min(found["readings"]["distance"][-1]) > 0
    else:
        assert 0 < found["score"] < 100


def settings_of(row, epochs=2):
    torch.set_num_threads(1)
    return training.replayed(CASE, row, row.replays, epochs)


def test_controls_take_the_mean_or_all_steps_of_their_method():
    history = training.train(CASE, rows.RIVALS["OGM"], 2)[2]
    terms = torch.stack([readings["term"] for readings in history])
    assert terms.std() > 0
    constant = settings_of(rows.CONTROLS["OGM: constant"])
    assert constant["acts_on"] == "gradient"
    assert list(constant["factors"].values()) == pytest.approx(terms.mean(0).tolist())
    shuffled = settings_of(rows.CONTROLS["OGM: shuffled"])
    assert shuffled["terms"] == {"A": terms[:, 0].tolist(), "B": terms[:, 1].tolist()}
    assert shuffled["permuted"]
    assert settings_of(rows.CONTROLS["MSLR dynamic: constant"])["acts_on"] == "update"


def test_dropout_beside_opm_drops_as_much_as_opm_did():
    opm = rows.RIVALS["OPM"]
    kept = torch.stack([readings["term"] for readings in training.train(CASE, opm, 4)[2]])
    assert kept.min() < 1
    drops = settings_of(rows.CONTROLS["OPM: constant"], epochs=4)["p"]
    assert list(drops.values()) == pytest.approx((1 - kept).mean(0).tolist())


def test_constant_weights_of_redcore_are_a_training_of_redcore_whose_weights_rest():
    # RedCore at eta 0: weights of 1, and from the first step on 1 / sqrt(2)
    still = Row("RedCore", {"eta": 0.0})
    control = replace(rows.CONTROLS["RedCore: constant"], replays=Replay(still, "weight"))
    factors = settings_of(control)
    assert list(factors["factors"].values()) == pytest.approx([0.5**0.5] * 2)
    theirs = training.train(CASE, still, 1)[1].state_dict()
    own = training.train(CASE, replace(control, settings=factors, replays=None), 1)[1].state_dict()
    for key, value in theirs.items():
        torch.testing.assert_close(own[key], value, rtol=1e-3, atol=1e-5)


def test_what_follows_the_length_of_a_training_is_a_share_of_its_epochs():
    terms = torch.stack([r["term"] for r in training.train(CASE, rows.RIVALS["G2D"], 4)[2]])
    still = (terms == 0).any(1).view(4, -1).any(1)
    assert still.tolist() == [True, True, False, False]
