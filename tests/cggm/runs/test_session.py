"""Anybody's engine goes on exactly where it was interrupted, in the folder of its run."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from monai.engines import SupervisedTrainer
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from cggm import BalanceHandler
from cggm.errors import UserError
from cggm.runs import (
    Metric,
    RunFolder,
    Session,
    SessionOptions,
    Stopped,
    TrainingData,
    TrainingParts,
    Validation,
    read_json,
    read_jsonl,
    register_metrics,
    run,
    seed_everything,
)
from cggm.runs.loop.sampling import ReplayedLoader
from pipelines.report import write_reports
from tests.cggm.networks import late_batch, make_cggm, make_late
from tests.quantifiers import every

ROOT = Path(__file__).parents[3]
register_metrics(Metric("margin", "margin", "higher"))
LOGS = ("metrics.jsonl", "balance.jsonl")


class Killed(Exception):
    """Stands for the end of the process."""


def samples(count=24):
    return list(zip(*late_batch(count), strict=True))


class Training:
    """A network with dropout, a session, and an engine of one of three kinds."""

    def __init__(
        self, folder, kind, *, balanced=True, epochs=3, schedule=None, content="", **options
    ):
        seed_everything(0)
        self.network, heads = make_late()
        self.network.fusion.append(nn.Dropout(0.2))
        self.balancer = make_cggm(heads) if balanced else None
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.loader = DataLoader(samples(), batch_size=4, shuffle=True)
        balance = None
        if balanced:
            stock = self.network if kind == "stock" else None
            balance = BalanceHandler(self.balancer, stock)
        schedule = schedule and schedule(self.optimizer)
        self.session = Session(
            getattr(self, kind)(),
            TrainingParts(self.network, self.optimizer, schedule),
            TrainingData(self.loader, content=content),
            RunFolder(folder),
            SessionOptions(**{"max_epochs": epochs, "save_minutes": 0, "curves": False, **options}),
            balance=balance,
            validation=Validation(self.validate, "margin"),
        )

    def stock(self):
        return create_supervised_trainer(self.network, self.optimizer, nn.CrossEntropyLoss())

    def monai(self):
        return SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=self.loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.CrossEntropyLoss(),
            prepare_batch=lambda batch, *_, **__: batch,
            decollate=False,
        )

    def own(self):
        def step(engine, batch):
            inputs, target = batch
            self.network.train()
            self.optimizer.zero_grad()
            prediction = self.network(inputs)
            loss = nn.functional.cross_entropy(prediction, target)
            if self.balancer is not None:
                loss = self.balancer(prediction, target, loss)
            loss.backward()
            self.optimizer.step()
            return loss.item()

        return Engine(step)

    @torch.no_grad()
    def validate(self):
        inputs, target = late_batch(8, seed=5)
        prediction = self.network.eval()(inputs)
        return {"margin": float(prediction.gather(1, target[:, None]).mean())}

    def run(self, killed_at=None, action=None):
        def die(engine):
            if engine.state.iteration == killed_at:
                action() if action else fail()

        def fail():
            raise Killed

        self.session.trainer.add_event_handler(Events.ITERATION_COMPLETED, die)
        self.session.run()
        return self

    @property
    def weights(self):
        return self.network.state_dict()


def assert_same(one, other, folders, logs=LOGS):
    assert one.keys() == other.keys()
    assert every(torch.equal(value, other[key]) for key, value in one.items())
    for log in logs:
        assert (folders[0] / log).read_text() == (folders[1] / log).read_text()


@pytest.mark.parametrize("kind", ["stock", "monai", "own"])
def test_a_killed_training_of_any_engine_goes_on_with_equal_bits(tmp_path, kind):
    whole = Training(tmp_path / "whole", kind).run()
    for step in (4, 6, 13):  # within an epoch, at the end of one, within another
        with pytest.raises(Killed):
            Training(tmp_path / "parts", kind).run(step)
    again = Training(tmp_path / "parts", kind)
    assert again.session.done == 2
    again.run()
    assert_same(whole.weights, again.weights, (tmp_path / "whole", tmp_path / "parts"))
    assert len(read_jsonl(tmp_path / "parts" / "balance.jsonl")) == 18
    assert "val_margin" in read_jsonl(tmp_path / "parts" / "metrics.jsonl")[0]
    assert (
        (tmp_path / "parts" / "config.yaml").read_text().startswith("task: custom\nmax_epochs: 3")
    )
    assert (tmp_path / "parts" / "environment.json").exists()


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    ],
    ids=["StepLR", "ReduceLROnPlateau"],
)
def test_a_schedule_and_no_method_are_resumed_too(tmp_path, schedule):
    settings = {"balanced": False, "schedule": schedule}
    whole = Training(tmp_path / "whole", "own", **settings).run()
    with pytest.raises(Killed):
        Training(tmp_path / "parts", "own", **settings).run(9)
    again = Training(tmp_path / "parts", "own", **settings).run()
    folders = (tmp_path / "whole", tmp_path / "parts")
    assert_same(whole.weights, again.weights, folders, ["metrics.jsonl"])
    rates = [line["lr"] for line in read_jsonl(folders[1] / "metrics.jsonl")]
    assert rates == [0.1, 0.05, 0.025] or "Plateau" in str(type(again.session._parts.schedule))


def test_a_signal_saves_and_the_best_weights_can_be_had(tmp_path):
    training = Training(tmp_path / "run", "stock", save_minutes=100)
    with pytest.raises(Stopped, match="SIGTERM: saved step 9"):
        training.run(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    again = Training(tmp_path / "run", "stock").run()
    best = again.session.load_best()
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert best.score == max(line["val_margin"] for line in lines)
    assert again.validate()["margin"] == pytest.approx(best.score)


def test_the_optimizer_is_given_back_as_it_was(tmp_path):
    training = Training(tmp_path / "run", "own", epochs=1)
    assert "step" in vars(training.optimizer)
    training.run()
    assert "step" not in vars(training.optimizer)
    calls = []
    training.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    training.optimizer.step(closure=None)
    assert calls == [1]


def test_numbers_that_are_not_finite_end_it_before_their_step(tmp_path):
    training = Training(tmp_path / "run", "stock", balanced=False)
    spoil = training.network.encoders["text"][0].weight.register_hook

    def poison(engine):
        if engine.state.iteration == 3:
            spoil(lambda gradient: gradient * float("nan"))

    training.session.trainer.add_event_handler(Events.ITERATION_STARTED, poison)
    with pytest.raises(UserError, match="iteration 3: the gradient of the network is not finite"):
        training.run()
    assert (
        Training(tmp_path / "run", "stock", balanced=False).session._saver.progress.iteration == 2
    )


@pytest.mark.parametrize("balanced", [True, False])
def test_a_report_is_made_of_anybodys_run(tmp_path, balanced):
    Training(tmp_path / "run", "own", balanced=balanced, epochs=2).run()
    [page] = write_reports(tmp_path / "run", ROOT / "configs" / "tasks.yaml")
    text = page.read_text()
    assert "margin" in text
    assert ("Score of each head" in text) == balanced


def test_other_data_of_another_length_is_refused(tmp_path):
    Training(tmp_path / "run", "own", epochs=1).run()
    longer = DataLoader(samples(28), batch_size=4)
    training = Training(tmp_path / "other", "own")
    with pytest.raises(UserError, match="number of batches"):
        Session(
            Engine(lambda *_: 0.0),
            TrainingParts(training.network, training.optimizer),
            TrainingData(longer),
            RunFolder(tmp_path / "run"),
            SessionOptions(max_epochs=2),
        )


def test_a_replayed_loader_begins_anywhere_and_leaves_the_generator_alone():
    loader = DataLoader(range(10), batch_size=2, shuffle=True)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    whole = ReplayedLoader(loader, seed=1)
    batches = [batch.tolist() for batch, _ in zip(whole, range(15), strict=False)]
    assert torch.equal(torch.rand(1), expected)
    epochs = [[x for batch in batches[start : start + 5] for x in batch] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    for skipped in (1, 5, 7, 14):
        part = ReplayedLoader(loader, seed=1)
        part.skip(skipped)
        assert next(iter(part)).tolist() == batches[skipped]


class Counted(SequentialSampler):
    """An order that is told which epoch it is for, as one of several ranks is."""

    def set_epoch(self, epoch):
        self.told = [*getattr(self, "told", []), epoch]


def test_a_replayed_loader_tells_its_sampler_the_epochs_from_one():
    sampler = Counted(range(10))
    whole = ReplayedLoader(DataLoader(range(10), batch_size=5, sampler=sampler), seed=1)
    assert len([batch for batch, _ in zip(whole, range(5), strict=False)]) == 5
    assert sampler.told == [1, 2, 3]


# Each step takes 20 ms more, so that a kill meant for the midst of an epoch comes there.
SLOWLY = """
import runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: time.sleep(0.02))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(folder, *, kill_after=None, within_epoch=False):
    slowed = [] if kill_after is None else ["-c", SLOWLY]
    command = [sys.executable, *slowed, ROOT / "examples" / "resumable.py", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = folder / "run" / "checkpoints"
    while kill_after is not None and process.poll() is None:
        steps = [int(path.name[-8:]) for path in checkpoints.glob("epoch-*")]
        if any(kill_after < step < 96 and (step % 16 or not within_epoch) for step in steps):
            process.kill()
        time.sleep(0.005)
    return process.wait(timeout=120)


def test_the_example_survives_kill_9(tmp_path):
    assert run_example(tmp_path / "whole") == 0
    killed = run_example(tmp_path / "parts", kill_after=4, within_epoch=True)
    assert killed == -signal.SIGKILL
    assert run_example(tmp_path / "parts", kill_after=40) == -signal.SIGKILL
    assert run_example(tmp_path / "parts") == 0
    last = "run/checkpoints/epoch-0006-step-00000096/model.safetensors"
    one, other = (load_file(tmp_path / name / last) for name in ("whole", "parts"))
    assert_same(one, other, (tmp_path / "whole" / "run", tmp_path / "parts" / "run"))


def test_what_results_depend_on_is_kept_and_what_may_change_is_recorded(tmp_path):
    Training(tmp_path / "run", "own", epochs=1).run()
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"run: a run keeps .* --validate_every 2 \(it has 1\)"):
        Training(tmp_path / "run", "own", epochs=2, validate_every=2)
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    Training(tmp_path / "run", "own", epochs=2, keep_last=3).run()
    record = read_json(tmp_path / "run" / "environment.json")
    assert record["resumed_at"] == 6
    assert record["changed"] == {"max_epochs": [1, 2], "keep_last": [2, 3]}


def test_other_threads_and_processors_are_noted(tmp_path, capsys, monkeypatch):
    Training(tmp_path / "run", "own", epochs=1).run()
    Training(tmp_path / "run", "own", epochs=1)
    assert "may differ" not in capsys.readouterr().err
    threads = torch.get_num_threads()
    monkeypatch.setattr("cggm.runs.checkpoints.save.processor", lambda: "Abacus")
    torch.set_num_threads(threads + 1)
    try:
        Training(tmp_path / "run", "own", epochs=1)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert f"by threads {threads}, now {threads + 1}; processor " in said
    assert "now Abacus: numbers may differ from here on" in said


HOLDER = """
import sys, time
from functools import partial
from pathlib import Path
from cggm.runs.storage.locks import hold
hold(Path(sys.argv[1]), "a training")
print(flush=True)
time.sleep(60)
"""


def test_a_run_that_is_going_on_elsewhere_is_refused(tmp_path):
    Training(tmp_path / "run", "own", epochs=1).run()
    gc.collect()  # sessions hold their folder as long as they live; engines make cycles
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        try:
            with pytest.raises(UserError, match=r"run: a training, process .* still writes there"):
                Training(tmp_path / "run", "own")
        finally:
            holder.kill()
    Training(tmp_path / "run", "own")


def test_a_run_that_began_meanwhile_is_refused(tmp_path):
    first, second = (Training(tmp_path / "run", "own") for _ in range(2))
    first.session.prepare_folder()
    with pytest.raises(UserError, match="run: another training began there meanwhile"):
        second.session.prepare_folder()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("step", [8, 12])  # within an epoch, and at its end
def test_weights_that_a_step_makes_infinite_are_neither_validated_nor_saved(tmp_path, value, step):
    training = Training(tmp_path / "run", "own", balanced=False)
    steps = itertools.count(1)

    @torch.no_grad()
    def overflow(*_):
        if next(steps) == step:
            training.network.output_layer.weight[0, 0] = value

    training.optimizer.register_step_post_hook(overflow)
    message = f"run: weights are not finite after step {step}, in output_layer.weight"
    with pytest.raises(UserError, match=message):
        training.run()
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 1
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        weights = load_file(path / "model.safetensors").values()
        assert every(bool(w.isfinite().all()) for w in weights)


def test_a_run_that_is_moved_away_ends_and_is_begun_nowhere_else(tmp_path, capsys):
    training = Training(tmp_path / "run", "own", balanced=False)
    move = partial((tmp_path / "run").rename, tmp_path / "moved")
    assert run(lambda _: training.run(7, move) and 0, []) == 2
    message = f"error: {tmp_path}/run/checkpoints: No such file or directory. Was it moved or"
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["moved"]
    Training(tmp_path / "moved", "own", balanced=False).run()


def test_edited_data_are_refused_and_early_checkpoints_noted_no_content(tmp_path):
    Training(tmp_path / "run", "own", epochs=1).run()
    Training(tmp_path / "run", "own", epochs=2, content="a").run()
    Training(tmp_path / "run", "own", epochs=2, content="a")
    with pytest.raises(UserError, match="differs in its content of the samples"):
        Training(tmp_path / "run", "own", epochs=3, content="b")
