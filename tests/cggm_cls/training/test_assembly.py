import json
import sys
import time
from dataclasses import replace

import pytest
import torch
from ignite.engine import Events
from safetensors.torch import load_file

from cggm.errors import UserError
from cggm.runs.folder import RunFolder
from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.sequences import SequenceDataset
from cggm_cls.training.assembly import SequenceTraining
from cggm_cls.training.config import (
    AdamConfig,
    SequenceBalancerConfig,
    SequenceConfig,
    SequenceNetworkConfig,
)
from cggm_cls.training.evaluation import evaluate, predict
from tests.cggm_cls.splits import task_data
from tests.quantifiers import every, none

CPU = torch.device("cpu")
CONFIG = SequenceConfig(
    max_epochs=2,
    batch_size=16,
    network=SequenceNetworkConfig(width=8, attention_heads=2, encoder_layers=1, fusion_layers=1),
    optimizer=AdamConfig(name="adamw", lr=0.01, head_lr=0.01),
)
torch.set_num_threads(1)


def train(folder, config=CONFIG, data=None):
    training = SequenceTraining(config, RunFolder(folder), data or task_data(), CPU)
    training.run()
    return training


def weights(folder, epoch):
    return load_file(next(folder.glob(f"checkpoints/epoch-{epoch:04d}-*")) / "model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and every(torch.equal(a[name], b[name]) for name in a)


def test_run_folder_holds_everything(tmp_path):
    train(tmp_path / "run", data=replace(task_data(), names=("calm", "glad", "sad")))
    run = RunFolder(tmp_path / "run")
    results = json.loads(run.results.read_text())
    assert results["simulated"]
    assert results["classes"] == ["calm", "glad", "sad"]
    assert "glad" in run.report.read_text()
    assert {"acc", "uar", "f1_macro", "f1_weighted", "confusion"} == set(results["test"])
    assert list(results["subsets"]) == [
        *("text", "audio", "vision"),
        *("text+audio", "text+vision", "audio+vision"),
    ]
    records = read_jsonl(run.balance)
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5, 6]
    for name in ("score", "term", "raw_term", "cosine", "gradient_norm"):
        assert list(records[0][name]) == ["text", "audio", "vision"]
    assert [r["epoch"] for r in read_jsonl(run.metrics)] == [1, 2]
    assert {"score.png", "term.png", "curves.png"} <= {p.name for p in run.curves.iterdir()}


def test_the_informative_modality_is_learnt(tmp_path):
    train(tmp_path / "run", replace(CONFIG, max_epochs=20))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["acc"] > 0.9
    assert results["subsets"]["text"]["acc"] > 0.6
    assert results["subsets"]["vision"]["acc"] < 0.5


def test_regression_minimizes_and_selects_by_the_mean_absolute_error(tmp_path):
    train(tmp_path / "run", replace(CONFIG, max_epochs=20), task_data(classes=None))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert results["validation_score"] == -min(r["val_mae"] for r in records)
    assert results["test"]["mae"] < 1.0  # a constant has 1.5
    assert results["test"]["corr"] > 0.7


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    train(tmp_path / "whole", replace(CONFIG, max_epochs=4))
    train(tmp_path / "parts")
    longer = replace(CONFIG, max_epochs=4)
    training = SequenceTraining(longer, RunFolder(tmp_path / "parts"), task_data(), CPU)
    assert training.session.done == 2
    training.run()
    assert equal(weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4))
    for name in ("balance.jsonl", "metrics.jsonl", "results.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


def test_time_adds_up_over_resumptions(tmp_path):
    start = time.monotonic()
    train(tmp_path / "run")
    before = read_jsonl(tmp_path / "run" / "timing.jsonl")
    train(tmp_path / "run", replace(CONFIG, max_epochs=4))
    taken = time.monotonic() - start
    times = read_jsonl(tmp_path / "run" / "timing.jsonl")
    assert times[: len(before)] == before
    assert len(times) > len(before)
    assert 0 < sum(line["seconds"] for line in times) < taken
    for line in times:
        assert 0 <= line["loading_seconds"] <= line["seconds"]


def test_curves_are_drawn_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("cggm.runs.watch.curves._FIRST_DRAWING", 0.0)
    drawn = []

    def look(engine):
        drawn.append((tmp_path / "run" / "curves" / "curves.png").exists())

    training = SequenceTraining(CONFIG, RunFolder(tmp_path / "run"), task_data(), CPU)
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, look)
    training.run()
    assert drawn[0]
    plain = SequenceTraining(
        replace(CONFIG, curves=False), RunFolder(tmp_path / "plain"), task_data(), CPU
    )
    plain.run()
    assert equal(weights(tmp_path / "run", 2), weights(tmp_path / "plain", 2))


def test_other_data_is_refused_on_resume(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(UserError, match="data"):
        train(tmp_path / "run", data=task_data(seed=1))


def test_test_labels_reach_neither_training_nor_selection(tmp_path):
    data = task_data()
    changed = (data.test.target + 1) % 3
    poisoned = SequenceDataset(data.test.inputs, changed, data.test.ids)
    train(tmp_path / "a", data=data)
    train(tmp_path / "b", data=replace(data, test=poisoned))
    assert equal(weights(tmp_path / "a", 2), weights(tmp_path / "b", 2))
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()
    a, b = (json.loads((tmp_path / x / "results.json").read_text()) for x in "ab")
    assert (a["epoch"], a["validation_score"]) == (b["epoch"], b["validation_score"])
    assert a["test"] != b["test"]


def test_test_split_is_not_read_before_the_training_is_over(tmp_path, monkeypatch):
    data = task_data()
    read = []
    batch = SequenceDataset.batch
    monkeypatch.setattr(
        SequenceDataset, "batch", lambda self, *a, **k: read.append(self) or batch(self, *a, **k)
    )
    train(tmp_path / "run", data=data)
    order = [["train", "valid", "test"][int(split.ids[0][0])] for split in read]
    assert "test" not in order[: len(order) - order[::-1].index("valid")]
    assert order[-1] == "test"


def test_selected_weights_are_those_of_the_best_validation(tmp_path):
    data = task_data()
    training = train(tmp_path / "run", replace(CONFIG, max_epochs=5, keep_last=1), data)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    best = max(r["val_acc"] for r in records)
    assert results["validation_score"] == best
    assert records[results["epoch"] - 1]["val_acc"] == best
    assert evaluate(training.network, data.test, data.measure) == results["test"]


def test_heads_leave_the_network_alone(tmp_path):
    plain = replace(CONFIG, balancer=SequenceBalancerConfig(name="Balancer"))
    settings = {"rho": None, "lam": 0.0, "direction": None}
    neutral = replace(CONFIG, balancer=SequenceBalancerConfig(settings=settings))
    train(tmp_path / "plain", plain)
    train(tmp_path / "neutral", neutral)
    train(tmp_path / "balanced")
    assert equal(weights(tmp_path / "plain", 2), weights(tmp_path / "neutral", 2))
    assert not equal(weights(tmp_path / "plain", 2), weights(tmp_path / "balanced", 2))
    assert none("head." in name or "heads." in name for name in weights(tmp_path / "plain", 2))


def test_the_rate_falls_on_a_plateau_of_the_validation_loss(tmp_path):
    optimizer = replace(CONFIG.optimizer, plateau="loss", patience=1, lr=1e-9)
    training = train(tmp_path / "run", replace(CONFIG, max_epochs=3, optimizer=optimizer))
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    schedule = training.session._parts.schedule
    assert schedule.best == pytest.approx(min(line["val_loss"] for line in lines))
    prediction = predict(training.network, training.data.valid)
    expected = torch.nn.functional.cross_entropy(prediction, training.data.valid.target)
    assert lines[-1]["val_loss"] == pytest.approx(float(expected), rel=1e-4)
    plain = train(tmp_path / "plain", replace(CONFIG, max_epochs=1))
    assert plain.session._parts.schedule.best == -max(
        line["val_acc"] for line in read_jsonl(tmp_path / "plain" / "metrics.jsonl")
    )


def test_gradient_is_clipped(tmp_path):
    still = replace(CONFIG, optimizer=replace(CONFIG.optimizer, name="adam", clip_norm=1e-30))
    free = replace(CONFIG, optimizer=replace(CONFIG.optimizer, name="adam", clip_norm=0.0))
    initial = build_initial()
    train(tmp_path / "still", still)
    train(tmp_path / "free", free)
    assert moved(initial, weights(tmp_path / "still", 2)) < 1e-6
    assert moved(initial, weights(tmp_path / "free", 2)) > 1e-2


def build_initial():
    torch.manual_seed(CONFIG.seed)
    return CONFIG.network.build(task_data().widths, task_data().classes).state_dict()


def moved(before, after):
    return max(float((before[name] - after[name]).abs().max()) for name in before)


def test_evaluation_restores_the_mode_and_covers_the_split():
    data = task_data()
    network = CONFIG.network.build(data.widths, data.classes).train()
    whole = predict(network, data.valid, batch_size=64)
    assert network.training
    assert whole.shape == (20, 3)
    torch.testing.assert_close(predict(network, data.valid, batch_size=3), whole)


def test_absent_modalities_do_not_matter():
    data = task_data()
    network = CONFIG.network.build(data.widths, data.classes)
    noise = dict(data.valid.inputs)
    noise["audio"] = type(noise["audio"])(
        torch.randn_like(noise["audio"].values), noise["audio"].offsets
    )
    other = replace(data.valid, inputs=noise)
    present = ("text", "vision")
    a, b = (predict(network, split, present=present) for split in (data.valid, other))
    assert torch.equal(a, b)
    assert not torch.equal(predict(network, data.valid), predict(network, other))


def test_wrong_setting_is_refused_before_anything_is_written(tmp_path):
    wrong = replace(CONFIG, balancer=SequenceBalancerConfig(settings={"rhoo": 1}))
    with pytest.raises(UserError, match="rhoo"):
        train(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_mlflow_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="--mlflow needs the package mlflow"):
        train(tmp_path / "run", replace(CONFIG, mlflow=str(tmp_path / "tracking")))
    assert list(tmp_path.iterdir()) == []
