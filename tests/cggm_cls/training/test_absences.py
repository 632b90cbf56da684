"""Trainings on samples that lack a modality: who is told, who refuses, and what is left out."""

import json
from dataclasses import replace

import pytest
import torch

from cggm.balancer import Balancer
from cggm.errors import MethodRefusal, UserError
from cggm.runs.folder import RunFolder
from cggm_cls.data.sequences import RaggedSequences, SequenceDataset
from cggm_cls.training.assembly import SequenceTraining
from cggm_cls.training.config import AdamConfig, SequenceBalancerConfig, SequenceNetworkConfig
from cggm_cls.training.evaluation import evaluate_heads
from tests.cggm_cls.splits import task_data
from tests.cggm_cls.training.test_assembly import CONFIG

CPU = torch.device("cpu")


def without(dataset, name, positions):
    """The same split, in which some samples have no step of a modality."""
    ends = dataset.inputs[name].offsets.tolist()
    values = dataset.inputs[name].values
    kept = [
        values[:0] if k in positions else values[ends[k] : ends[k + 1]] for k in range(len(dataset))
    ]
    inputs = {**dataset.inputs, name: RaggedSequences.from_list(kept)}
    return SequenceDataset(inputs, dataset.target, dataset.ids)


def lacking(positions=range(0, 40, 3)):
    data = task_data()
    return replace(data, train=without(data.train, "audio", {*positions}), absences=True)


def method(name, **settings):
    return replace(CONFIG, balancer=SequenceBalancerConfig(name=name, settings=settings))


def build(folder, config, data):
    return SequenceTraining(config, RunFolder(folder), data, CPU)


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_the_method_is_told_which_samples_lack_what(kind, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        Balancer,
        "present",
        lambda self, masks: told.append({n: m.tolist() for n, m in masks.items()}),
    )
    data = lacking()
    network = replace(CONFIG.network, kind=kind)
    training = build(tmp_path / "run", replace(CONFIG, max_epochs=1, network=network), data)
    training.run()
    there = [mask for batch in told for mask in batch["audio"]]
    assert there.count(False) == len(range(0, 40, 3))
    assert len(there) == len(data.train)
    assert {mask for batch in told for mask in batch["text"]} == {True}


def test_a_head_learns_from_the_samples_that_have_its_modality_alone(tmp_path):
    # Nobody has audio but one sample: the head of audio moves only with that sample's batch.
    data = lacking(range(1, 40))
    training = build(tmp_path / "run", replace(method("UnimodalLosses"), batch_size=1), data)
    head = training.balancer.heads["audio"].output_layer.weight
    for position in (1, 2, 0):
        before = head.detach().clone()
        training._step(training.trainer, data.train.batch([position]))
        assert torch.equal(before, head) == (position != 0)


def test_a_head_is_measured_on_the_samples_that_have_its_modality(tmp_path):
    data = replace(lacking(), test=without(task_data().test, "audio", {*range(2, 24)}))
    training = build(tmp_path / "run", method("UnimodalLosses"), data)
    seen = []

    def measure(prediction, target):
        seen.append(target.tolist())
        return {"acc": float((prediction.argmax(1) == target).mean())}

    heads = training.balancer.heads
    found = evaluate_heads(training.network, heads, data.test, measure, batch_size=5)
    assert list(found) == ["text", "audio", "vision"]
    whole = data.test.target.tolist()
    assert seen == [whole, whole[:2], whole]
    alone = replace(data, test=without(data.test, "audio", {*range(24)}))
    assert "audio" not in evaluate_heads(training.network, heads, alone.test, measure)


def test_methods_that_cannot_leave_a_modality_out_are_refused(tmp_path):
    with pytest.raises(MethodRefusal, match="OGM cannot leave out a modality that samples lack"):
        build(tmp_path / "run", method("OGM", logits="split"), lacking())
    with pytest.raises(MethodRefusal, match=r"trains copies of the network.*but some lack"):
        build(tmp_path / "run", method("UnimodalTeacher"), lacking())
    with pytest.raises(UserError, match="for --gradients, but some lack one"):
        build(tmp_path / "run", replace(CONFIG, gradients=2), lacking())
    build(tmp_path / "run", method("Balancer"), lacking())
    assert not (tmp_path / "run").exists()


def test_a_modality_alone_is_trained_on_the_samples_that_have_it(tmp_path):
    data = lacking()
    alone = data.only(["audio"])
    gone = len(range(0, 40, 3))
    assert len(alone.train) == len(data.train) - gone
    assert alone.train.ids[0] == data.train.ids[1]
    there = [k for k in range(len(data.train)) if k not in range(0, 40, 3)]
    assert torch.equal(alone.train.target, data.train.target[there])
    assert not alone.absences
    assert len(data.only(["text", "audio"]).train) == len(data.train)
    assert data.only(["text", "audio"]).absences


def test_perceptrons_learn_and_resume(tmp_path):
    config = replace(
        CONFIG,
        max_epochs=20,
        network=SequenceNetworkConfig(kind="mlp", width=8, attention_heads=2, encoder_layers=1),
        optimizer=AdamConfig(name="adamw", lr=0.02, head_lr=0.02),
    )
    build(tmp_path / "whole", config, task_data()).run()
    build(tmp_path / "parts", replace(config, max_epochs=3), task_data()).run()
    build(tmp_path / "parts", config, task_data()).run()
    whole, parts = ((tmp_path / n / "results.json").read_text() for n in ("whole", "parts"))
    assert whole == parts
    results = json.loads(whole)
    assert results["test"]["acc"] > 0.8
    assert results["inputs"]["text"] == {"features": task_data().widths["text"]}
