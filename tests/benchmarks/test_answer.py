"""The benchmark with a known answer can be ended at any time and goes on."""

import json
import sys
from multiprocessing.pool import ThreadPool

import pytest

from benchmarks.known import answer

WORDS = ("--quick", "--seeds", "2", "--tasks", "classification", "--scenarios", "a")


def options_of(monkeypatch, file, *words):
    monkeypatch.setattr(sys, "argv", ["", "--json", str(file), *words])
    return answer.parse()


def test_seeds_are_whole_and_segmentation_has_one_optimizer(monkeypatch, tmp_path):
    words = ("--seeds", "2", "--scenarios", "a", "b", "--methods", "joint", "OGM")
    jobs = list(answer.planned(options_of(monkeypatch, tmp_path / "x.json", *words)))
    seeds = [case.seed for case, *_ in jobs]
    assert seeds == sorted(seeds)
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 2 * (2 + 2 + 1)
    assert {case.optimizer for case, *_ in jobs if case.task == "segmentation"} == {"sgd"}


def test_a_run_that_was_cut_goes_on_with_what_it_has(monkeypatch, tmp_path):
    file, words = tmp_path / "x.json", (*WORDS, "--methods", "joint", "OGM", "PASSION")
    partial = tmp_path / "x.json.partial"
    with ThreadPool(1) as pool:
        whole = answer.measure(pool, options_of(monkeypatch, file, *words))
        lines = partial.read_text().splitlines(keepends=True)
        assert [line.endswith("null]\n") for line in lines] == [False, False, True] * 2
        partial.write_text("".join(lines[:4]) + lines[4][:50])
        with pytest.raises(SystemExit):
            options_of(monkeypatch, file, *words)
        kept = json.loads(lines[0])
        kept[-1]["score"] = -1.0
        partial.write_text(json.dumps(kept) + "\n" + partial.read_text().partition("\n")[2])
        again = answer.measure(pool, options_of(monkeypatch, file, *words, "--resume"))
    assert [row["score"] for row in again] == [-1.0, *(row["score"] for row in whole[1:])]
    assert len(partial.read_text().splitlines()) == 6


def test_joint_training_and_one_choice_of_methods_are_asked_for(monkeypatch, tmp_path, capsys):
    for words, message in (
        (("--methods", "OGM"), "must name joint"),
        (("--methods", "joint", "--controls"), "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            options_of(monkeypatch, tmp_path / "x.json", *words)
        assert message in capsys.readouterr().err


def test_rows_of_one_seed_have_no_interval_and_no_verdict():
    assert answer.interval([1.5]) == (1.5, float("inf"))
    rows = answer.finite({"a": (1.5, float("inf")), "b": [float("nan"), 0.123456]})
    assert rows == {"a": [1.5, None], "b": [None, 0.1235]}
