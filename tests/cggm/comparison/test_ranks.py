import math

from cggm.comparison.statistics import average_ranks, ranks_of
from tests.cggm.comparison.runs import run, runs


def test_ties_share_their_ranks():
    scores = {"a": 0.8, "b": 0.9, "c": 0.8, "d": 0.1}
    assert ranks_of(scores, lower_better=False) == {"a": 2.5, "b": 1.0, "c": 2.5, "d": 4.0}
    assert ranks_of(scores, lower_better=True) == {"a": 2.5, "b": 4.0, "c": 2.5, "d": 1.0}


def test_what_one_test_sample_makes_is_no_rank():
    means = {"a": 0.90, "b": 0.91, "c": 0.85}
    records = [r for name, x in means.items() for r in runs(name, [x, x], samples=100)]
    found = average_ranks(records, {"mosi": ["acc"]})
    assert {name: rank.average for name, rank in found.items()} == {"a": 1.5, "b": 1.5, "c": 3.0}


def test_every_task_weighs_the_same():
    tests = {"a": (0.9, 0.5, 0.1), "b": (0.8, 0.6, 0.3), "c": (0.7, 0.7, 0.2)}
    records = [
        record
        for name, (acc, mae, dice) in tests.items()
        for record in (
            run(name, 0, {"acc": acc, "mae": mae}),
            run(name, 0, {"dice": dice}, task="brats"),
        )
    ]
    found = average_ranks(records, {"mosi": ["acc", "mae"], "brats": ["dice"]})
    # a: (1 + 1) / 2 and 3; b: (2 + 2) / 2 and 1; c: (3 + 3) / 2 and 2.
    assert {name: r.average for name, r in found.items()} == {"b": 1.5, "a": 2.0, "c": 2.5}
    assert list(found) == ["b", "a", "c"]
    assert found["a"].columns == {("mosi", "acc"): 1, ("mosi", "mae"): 1, ("brats", "dice"): 3}


def test_a_method_that_lacks_a_task_is_incomplete_and_last():
    records = [
        *runs("best", [0.9]),
        *runs("joint", [0.8]),
        *runs("joint", [0.5], "dice", task="brats"),
        run("best", 0, {"dice": None}, task="brats"),
        run("none", 0, {}, task="brats"),
    ]
    found = average_ranks(records, {"mosi": ["acc"], "brats": ["dice"]})
    assert list(found) == ["joint", "best", "none"]
    assert (found["joint"].average, found["joint"].complete) == (1.5, True)
    assert (found["best"].average, found["best"].tasks) == (1.0, 1)
    assert not found["best"].complete
    assert math.isnan(found["none"].average)


def test_training_on_one_modality_has_no_rank_but_unimodal_losses_have():
    heads = {"text": {}}
    records = [
        *runs("joint", [0.5], heads=heads),
        *runs("unimodal_text", [0.9]),
        *runs("unimodal_losses", [0.7]),
    ]
    assert list(average_ranks(records, {"mosi": ["acc"]})) == ["unimodal_losses", "joint"]
