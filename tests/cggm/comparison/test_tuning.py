"""Tuning: spaces, equally many trials for each method, the best on validation, and resuming."""

import json
import math
import re

import pytest

from cggm.comparison.plan import PlannedRun
from cggm.comparison.records import Outcome, RecordStore
from cggm.comparison.tuning import Space, Sweep, tuning_table
from cggm.errors import UserError
from cggm.reports import Task
from cggm.runs import Metric, is_registered, register_metrics
from tests.quantifiers import every

LR = Space("optimizer.lr", None, (), 1e-4, 1e-2, True)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("optimizer.lr=1e-4..1e-2:log", LR),
        ("batch_size=32|64", Space("batch_size", None, ("32", "64"))),
        ("cggm:rho=0.5..2", Space("balancer.settings.rho", "cggm", (), 0.5, 2.0)),
        ("network.width=8", Space("network.width", None, ("8",))),
    ],
)
def test_spaces_are_read(text, space):
    assert Space.parse(text) == space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr", "Expected a range or a choice"),
        ("=1..2", "Expected a range or a choice"),
        ("lr=1|", "Expected a range or a choice"),
        ("lr=2..1", "a range that rises"),
        ("lr=0..1:log", "from above 0"),
    ],
)
def test_wrong_spaces_are_refused(text, expected):
    with pytest.raises(UserError, match=expected):
        Space.parse(text)


def test_draws_fill_a_range_by_its_logarithm():
    drawn = [LR.draw(k) for k in range(1, 400)]
    assert every(1e-4 <= value <= 1e-2 for value in drawn)
    assert sum(value < 1e-3 for value in drawn) / len(drawn) == pytest.approx(0.5, abs=0.08)
    assert {Space("a", None, ("x", "y")).draw(k) for k in range(20)} == {"x", "y"}
    assert LR.draw(3) == LR.draw(3) != LR.draw(4)


class Laboratory:
    """Trainings whose validation error is a known function of the learning rate."""

    def __init__(self, folder):
        if not is_registered("gap"):
            register_metrics(Metric("gap", "gap", "lower", 3))
        self.folder, self.trained = folder, []
        task = Task("mine", folder / "script.py", ("a", "b"), ("gap",))
        self.runs = [
            PlannedRun(task, m, s, ("--x", "1")) for s in (0, 1) for m in ("joint", "cggm")
        ]

    def train(self, store, runs):
        for run in store.pending(runs):
            self.trained.append(run)
            told = dict(zip(run.arguments[::2], run.arguments[1::2], strict=True))
            rate = float(told.get("--optimizer.lr", 1e-2))
            failed = run.method == "cggm@2"
            folder = run.folder(store.output)
            folder.mkdir(parents=True, exist_ok=True)
            gap = abs(math.log10(rate) + 3) + float(told.get("--balancer.settings.rho", 1)) / 100
            results = {"validation": {"gap": gap}, "test": {"gap": -gap}}
            (folder / "results.json").write_text(json.dumps(results))
            log = run.log(store.output)
            log.write_text("it ended\n")
            store.keep(Outcome(run, int(failed), 1.0, None, None, False, log))


@pytest.fixture
def laboratory(tmp_path):
    return Laboratory(tmp_path)


@pytest.mark.parametrize("engine", ["random", "optuna"])
def test_best_on_validation_is_what_all_seeds_train_with(laboratory, engine):
    sweep = Sweep.parse("optimizer.lr=1e-4..1e-2:log,cggm:rho=0.5..2", 6, engine)
    runs = sweep.tuned(laboratory.runs, laboratory.folder, laboratory.train)
    trials = list(laboratory.trained)
    assert {run.seed for run in trials} == {2}, "none of the comparison's"
    for method in ("joint", "cggm"):
        own = [run for run in trials if run.method.startswith(f"{method}@")]
        assert len(own) == 6, "equally many"
        assert own[0].arguments == ("--x", "1"), "the first has its own settings"
        rates = [dict(zip(r.arguments[::2], r.arguments[1::2], strict=True)) for r in own[1:]]
        assert every(("--balancer.settings.rho" in told) == (method == "cggm") for told in rates)
        gaps = {
            run: json.loads((run.folder(laboratory.folder / "trials") / "results.json").read_text())
            for run in own
            if run.method != "cggm@2"  # which failed
        }
        best = min(gaps, key=lambda run: gaps[run]["validation"]["gap"])
        chosen = [run.arguments for run in runs if run.method == method]
        assert chosen == [best.arguments] * 2
    table = tuning_table(laboratory.folder)
    assert [cell.text for cell in table.rows[0][:3]] == ["mine", "joint", "6 (6 finished)"]
    assert [cell.text for cell in table.rows[1][:3]] == ["mine", "cggm", "6 (5 finished)"]
    settings = [row[3].text for row in table.rows]
    assert every(re.match(r"optimizer\.lr=0\.0*[1-9]\d{0,3}( |$)", text) for text in settings)
    assert "balancer" not in " ".join(settings)


@pytest.mark.parametrize("engine", ["random", "optuna"])
def test_interrupted_sweep_goes_on_to_the_same_choice(laboratory, tmp_path, engine):
    sweep = Sweep.parse("optimizer.lr=1e-4..1e-2:log", 5, engine)
    count = [0]

    def interrupted(store, runs):
        count[0] += 1
        if count[0] == 4:
            laboratory.train(store, runs[:1])
            raise KeyboardInterrupt
        laboratory.train(store, runs)

    with pytest.raises(KeyboardInterrupt):
        sweep.tuned(laboratory.runs, laboratory.folder, interrupted)
    runs = sweep.tuned(laboratory.runs, laboratory.folder, laboratory.train)
    keys = [run.key for run in laboratory.trained if run.method != "cggm@2"]
    assert len(keys) == len(set(keys)) == 9, "nothing is trained twice but what failed"
    other = Laboratory(tmp_path / "other")
    whole = sweep.tuned(other.runs, other.folder, other.train)
    assert [run.arguments for run in runs] == [run.arguments for run in whole]


def test_validation_is_that_of_the_epoch_whose_weights_were_kept(laboratory):
    """As trainings on sequences leave it: in the log alone."""

    def train(store, runs):
        laboratory.train(store, runs)
        for run in runs:
            file = run.folder(store.output) / "results.json"
            gap = json.loads(file.read_text())["validation"]["gap"]
            file.write_text(json.dumps({"epoch": 2, "test": {"gap": -gap}}))
            rows = [{"epoch": e, "val_gap": gap + abs(e - 2)} for e in (1, 2, 3)]
            lines = [json.dumps(row) for row in ({"epoch": 1, "train_loss": 1.0}, *rows)]
            (file.parent / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    sweep = Sweep.parse("optimizer.lr=1e-4..1e-2:log", 4, "random")
    tuned = sweep.tuned(laboratory.runs, laboratory.folder, train)
    rows = json.loads((laboratory.folder / "tuning.json").read_text())["methods"]
    assert [(row["finished"], bool(row["settings"])) for row in rows] == [(4, True), (3, True)]
    rate = float(tuned[0].arguments[-1])
    assert rows[0]["score"] == pytest.approx(abs(math.log10(rate) + 3) + 0.01)


def test_trainings_without_the_metric_are_refused(laboratory):
    def train(store, runs):
        laboratory.train(store, runs)
        for run in runs:
            (run.folder(store.output) / "results.json").write_text('{"test": {"gap": 1}}')

    with pytest.raises(UserError, match="nothing to tune by, the training validated no gap"):
        Sweep.parse("optimizer.lr=1e-4..1e-2", 2, "random").tuned(
            laboratory.runs, laboratory.folder, train
        )


def test_method_that_is_not_compared_is_refused(laboratory):
    with pytest.raises(UserError, match="ogm is none of the methods"):
        Sweep.parse("ogm:alpha=0.1..1", 2, "random").tuned(
            laboratory.runs, laboratory.folder, laboratory.train
        )


def test_store_of_trials_is_apart(laboratory):
    Sweep.parse("optimizer.lr=1e-4..1e-2", 2, "random").tuned(
        laboratory.runs, laboratory.folder, laboratory.train
    )
    assert not RecordStore(laboratory.folder).records()
    assert len(RecordStore(laboratory.folder / "trials").records()) == 4
