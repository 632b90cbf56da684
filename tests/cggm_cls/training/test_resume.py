"""A training that is interrupted anywhere and resumed equals one that was left alone."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from cggm.errors import UserError
from cggm.runs.config import read_config
from cggm.runs.folder import RunFolder
from cggm.runs.loop.signals import Stopped
from cggm_cls.training.assembly import SequenceTraining
from cggm_cls.training.config import SequenceConfig
from tests.cggm_cls.splits import task_data

ROOT = Path(__file__).parents[3]
# Greedy needs units between modalities, PASSION a task of places: neither serves sequences.
ELSEWHERE = ("greedy", "passion")
FILES = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
METHODS = [file for file in FILES if file.stem not in ELSEWHERE]
LOGS = ("metrics.jsonl", "balance.jsonl", "results.json")
CPU = torch.device("cpu")
# three epochs of three steps
TINY = """
max_epochs: 3
batch_size: 16
subsets: false
curves: false
report: false
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
optimizer: {lr: 0.01, head_lr: 0.01, patience: 0}
"""
# so that what takes turns, or measures first, does so within three epochs
HURRIED = {
    "GradientBlending": {"epochs": 1, "every": 2},
    "UnimodalTeacher": {"epochs": 1},
    "ReconBoost": {"epochs_per_stage": 1, "rectify_epochs": 1},
    "OPM": {"warmup_epochs": 1},
    "PMR": {"entropy_epochs": 1},
    "ModalityLearningRates": {"window": 2},
}
torch.set_num_threads(1)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def data():
    return task_data()


@pytest.fixture
def configured(tmp_path):
    def read(method):
        (tmp_path / "tiny.yaml").write_text(TINY)
        config = read_config(SequenceConfig, [tmp_path / "tiny.yaml", method])
        settings = config.balancer.settings
        hurried = HURRIED.get(config.balancer.name, {})
        settings = settings | {key: value for key, value in hurried.items() if key in settings}
        return replace(config, balancer=replace(config.balancer, settings=settings))

    return read


def train(config, folder, data, at=None, action=None):
    """Trains anew or further, with an action after a step or during a validation."""
    training = SequenceTraining(config, RunFolder(folder), data, CPU)
    validate = training.validate

    def after_step(engine):
        if engine.state.iteration == at:
            action()

    def validated():
        if at == f"validation {training.trainer.state.epoch}":
            action()
        return validate()

    training.validate = validated
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
    training.run()
    return training


def die():
    raise Killed


def differing(a, b, where="state"):
    """Where two nested states differ first."""
    if isinstance(a, torch.Tensor):
        return "" if torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) else where
    if isinstance(a, dict | list | tuple):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        found = (differing(a[key], b[key], f"{where} {key}") for key in keys)
        return next(filter(None, found), "") if len(a) == len(b) else where
    return "" if a == b else where


def assert_same(a, b):
    """Assert that two trainings ended alike, in their states and logs."""
    for part in ("network", "balancer"):
        assert differing(getattr(a, part).state_dict(), getattr(b, part).state_dict()) == ""
    for log in LOGS:
        assert (a.folder.path / log).read_text() == (b.folder.path / log).read_text()


@pytest.mark.parametrize("method", METHODS, ids=lambda file: file.stem)
def test_every_method_goes_on_exactly_from_the_middle_of_an_epoch(
    method, configured, data, tmp_path
):
    config = configured(method)
    whole = train(config, tmp_path / "whole", data)
    saving = replace(config, save_minutes=0)
    for step in (4, 8):
        with pytest.raises(Killed):
            train(saving, tmp_path / "parts", data, step, die)
    assert_same(train(config, tmp_path / "parts", data), whole)


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.parametrize("how", ["killed", "asked"])
def test_training_that_ends_in_a_validation_goes_on_with_it(how, epoch, configured, data, tmp_path):
    config = replace(configured(METHODS[0]), validate_every=2)
    whole = train(config, tmp_path / "whole", data)
    at = f"validation {epoch}"
    if how == "killed":
        with pytest.raises(Killed):
            train(replace(config, save_minutes=0), tmp_path / "parts", data, at, die)
    else:
        with pytest.raises(Stopped, match="SIGUSR1: saved step"):
            train(config, tmp_path / "parts", data, at, lambda: send(signal.SIGUSR1))
    last = max((tmp_path / "parts" / "checkpoints").iterdir()).name
    assert last == f"epoch-{epoch - 1:04d}-step-{3 * epoch:08d}"
    assert_same(train(config, tmp_path / "parts", data), whole)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("step", [1, 3, 5, 9])
def test_signal_after_any_step_saves_it_and_leaves(step, configured, data, tmp_path):
    config = configured(METHODS[0])
    whole = train(config, tmp_path / "whole", data)
    expected = step if step % 3 == 0 else step + 1  # it comes after the step before it was saved
    with pytest.raises(Stopped) as caught:
        train(config, tmp_path / "parts", data, step, lambda: send(signal.SIGTERM))
    assert caught.value.run == tmp_path / "parts"
    assert caught.value.what.startswith(f"step {expected}, ")
    assert_same(train(config, tmp_path / "parts", data), whole)


def test_other_batches_are_refused_on_resume(configured, data, tmp_path):
    config = configured(METHODS[0])
    with pytest.raises(Killed):
        train(replace(config, save_minutes=0), tmp_path / "run", data, 4, die)
    with pytest.raises(UserError, match=r"--batch_size 8 \(it has 16\)"):
        train(replace(config, batch_size=8), tmp_path / "run", data)
