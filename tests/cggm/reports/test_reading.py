"""Plain-language readings of readings made by hand."""

import numpy as np
import pytest

from cggm.reports.balance import FEWEST, read_balance

N = 100


def records(n=N, **columns):
    """Lines of balance.jsonl; each column is a value or a function of the step, by modality."""

    def value(entry, step):
        return entry(step) if callable(entry) else entry

    return [
        {
            "iteration": 10 * step,
            "epoch": 1,
            **{
                key: {name: value(entry, step) for name, entry in own.items()}
                for key, own in columns.items()
            },
        }
        for step in range(1, n + 1)
    ]


def said(found, word):
    sentences = [s for s in found if word in s]
    assert len(sentences) == 1, found
    return sentences[0]


def test_few_steps_are_not_read():
    found = read_balance(records(FEWEST - 1, score={"a": 0.1, "b": 0.2}))
    assert found == [f"Only {FEWEST - 1} steps were recorded, too few to read anything from."]


def test_leader_until_it_is_overtaken_and_how_it_was_held_back():
    score = {"t2": lambda k: min(k, 20) / 100, "flair": lambda k: k / 200, "t1": 0.05}
    term = {"t2": 0.6, "flair": 1.0, "t1": 1.4}
    found = read_balance(records(score=score, term=term))
    pace = said(found, "learnt fastest")
    step = int(pace.split("until step ")[1].split(":")[0])
    assert 400 < step < 600  # flair passes 0.2 at step 400, and is clearly ahead some steps later
    assert pace.startswith("t2 learnt fastest")
    assert "held back to 0.60 on average, the others to 1.20" in pace
    assert "flair had gained most, to a score of 0.4" in said(found, "In the end")
    assert "t1's head hardly learnt" in said(found, "hardly")


def test_leader_throughout_that_was_sped_up_or_left_alone():
    score = {"a": lambda k: k / 100, "b": lambda k: k / 300}
    faster = read_balance(records(score=score, term={"a": 1.2, "b": 0.8}))
    assert "a learnt fastest throughout" in said(faster, "fastest")
    assert "sped up to 1.20 on average, the others to 0.80" in said(faster, "fastest")
    alike = read_balance(records(score=score, term={"a": 1.0, "b": 1.0}))
    assert "was like the others'" in said(alike, "fastest")
    assert "every factor was 1" in said(alike, "No encoder")


def test_scores_that_fall_name_no_leader():
    found = read_balance(records(score={"a": lambda k: -k / 100, "b": lambda k: -k / 50}))
    assert "No head's score rose above its first value." in found
    assert not [s for s in found if "fastest" in s or "hardly" in s]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (0.04, "t1's head never rose above chance"),
        (lambda k: 1.0 if k < 5 else 0.0, "t1's head never rose above chance"),
        (lambda k: float(k > 50), "t1's head rose above chance at step 4"),
        (lambda k: float(k < 50), "t1's head rose above chance and fell back to it"),
    ],
)
def test_chance_by_the_gate(gate, words):
    score = {"t1": 0.1, "t2": lambda k: k / 100}
    found = read_balance(records(score=score, gate={"t1": gate, "t2": 1.0}))
    assert words in said(found, "above chance")
    assert not [s for s in found if "hardly" in s]  # the gate knows better


def test_mean_factors_and_the_raw_ratio():
    raw = {"a": lambda k: 1e6 if k == 7 else 0.5, "b": 1.5}
    found = read_balance(records(term={"a": 0.5, "b": 1.5}, raw_term=raw))
    factors = said(found, "Over the whole run")
    assert "a was held back most (factor 0.50" in factors
    assert "b least (1.50)" in factors
    assert "0 % of the readings, up to 1e+06" in said(found, "raw ratio")
    used = {"a": 0.5, "b": 1.5}
    assert not [s for s in read_balance(records(term=used, raw_term=used)) if "raw" in s]


def test_directions_of_the_second_half():
    cosine = {"a": lambda k: -1.0 if k <= N // 2 else 0.4, "b": 0.02, "c": -0.3}
    text = said(read_balance(records(cosine=cosine)), "second half")
    assert "the same way as the network's for a (0.40)" in text
    assert "across the network's for b (0.02)" in text
    assert "against the network's for c (\N{MINUS SIGN}0.30)" in text


def test_largest_gradient_where_it_is_twice_another():
    assert "3.0 times that of b" in said(
        read_balance(records(gradient_norm={"a": 3.0, "b": 1.0})), "largest gradient"
    )
    assert not read_balance(records(gradient_norm={"a": 1.5, "b": 1.0}))


def test_nothing_recorded_for_a_modality_is_not_read_as_zero():
    lines = records(score={"a": lambda k: k / 100, "b": lambda k: k / 50})
    for line in lines[:30]:
        line["score"]["b"] = None
    found = read_balance(lines)
    assert np.all(["nan" not in s and "\N{EN DASH}" not in s for s in found])


def test_which_modality_explained_how_many_samples():
    score = {"text": lambda k: k / 100, "audio": lambda k: k / 200}
    lead = {"text": lambda k: 0.9 if k <= 50 else 0.62, "audio": lambda k: 0.1 if k <= 50 else 0.38}
    found = read_balance(
        records(
            score=score,
            lead=lead,
            spread={"text": 0.3, "audio": 0.02},
            weight={"text": 0.7, "audio": 1.3},
            trust={"text": 1.0, "audio": lambda k: 1 - k / 100},
        )
    )
    assert "In 38 % of the samples audio explained more than text." in found
    assert said(found, "counted about alike").startswith("To audio all samples")
    assert said(found, "largest weight") == (
        "audio's loss had the largest weight, 1.30 on average, and text's the smallest, 0.70."
    )
    assert said(found, "hardly trusted").startswith("audio was")
    three = read_balance(
        records(score=dict.fromkeys("abc", 0.1), lead={"a": 0.5, "b": 0.2, "c": 0.3})
    )
    assert said(three, "explained best") == (
        "In the second half a sample was explained best by a in 50 %, c in 30 % and b in 20 % of "
        "the cases."
    )
