import io
import re
import time

import pytest
import torch
from ignite.engine import Engine

from cggm.runs.watch.progress import TrainingProgress
from tests.quantifiers import none


class Loader:
    """Batches that take their time."""

    def __init__(self, length: int, seconds: float = 0.0) -> None:
        self.length, self.seconds = length, seconds

    def __len__(self):
        return self.length

    def __iter__(self):
        for index in range(self.length):
            time.sleep(self.seconds)
            yield index


def train(output=0.5, *, steps=30, epochs=2, loading=0.0, stepping=0.0, stream=None, **options):
    stream = stream or io.StringIO()

    def step(engine, batch):
        time.sleep(stepping)
        return output() if callable(output) else output

    engine = Engine(step)
    TrainingProgress(stream=stream, **options).attach(engine)
    engine.run(Loader(steps, loading), max_epochs=epochs)
    return stream.getvalue().splitlines() if isinstance(stream, io.StringIO) else engine


def test_a_file_gets_one_line_per_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0123)
    lines = train(optimizer=optimizer)
    assert len(lines) == 3
    assert lines[0].startswith("loading ")
    assert lines[1] == "epoch 1/2, step 30/60, loss 0.5, lr 0.0123, 00:00 left"
    assert lines[2] == "epoch 2/2, step 60/60, loss 0.5, lr 0.0123, 00:00 left"


def test_a_long_epoch_gets_lines_in_between():
    lines = train(steps=10, epochs=1, stepping=0.05, interval=0.2)
    assert 2 <= len(lines) <= 4
    assert re.match(r"epoch 1/1, step [3-7]/10, loss 0.5, 00:0\d left", lines[0])


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (2.0, "loss 2"),
        (torch.tensor(2.0), "loss 2"),
        (torch.tensor([1.0, 3.0]), "loss 2"),
        ({"loss": torch.tensor(2.0), "pred": torch.zeros(2)}, "loss 2"),
        ([{"loss": 2.0}, {"loss": 2.0}], "loss 2"),
        ((2.0, "x"), "loss 2"),
        (None, "1/1, step 3/3, 00"),
        ({"pred": 1}, "1/1, step 3/3, 00"),
        ([], "1/1, step 3/3, 00"),
        ("text", "1/1, step 3/3, 00"),
    ],
)
def test_the_loss_is_found_in_any_output(output, shown):
    (line,) = train(output, steps=3, epochs=1)
    assert shown in line


class Watched(torch.Tensor):
    """Counts how often its value is asked for, which on a GPU waits for the device."""

    looks = 0

    def __float__(self):
        Watched.looks += 1
        return 1.0

    def tolist(self):
        Watched.looks += 1
        return [0.5, 0.25]


def test_the_device_is_waited_for_only_when_something_is_said():
    Watched.looks = 0

    def step(engine, batch):
        engine.state.balance = {"score": torch.ones(2).as_subclass(Watched)}
        return torch.ones(()).as_subclass(Watched)

    engine = Engine(step)
    TrainingProgress(stream=io.StringIO(), modalities=("a", "b")).attach(engine)
    engine.run(Loader(100), max_epochs=1)
    assert Watched.looks == 2 + 2  # loss after steps 1 and 20; loss and score of the epoch's line


def balanced(readings, modalities, stream=None):
    """Trains an epoch of three steps, after each of which the balancer's readings are there."""
    stream = stream or io.StringIO()

    def step(engine, batch):
        engine.state.balance = {name: torch.tensor(values) for name, values in readings.items()}
        return 0.5

    engine = Engine(step)
    TrainingProgress(stream=stream, modalities=modalities).attach(engine)
    engine.run(Loader(3), max_epochs=1)
    return stream


def test_lines_tell_score_and_factor_of_each_modality():
    readings = {"score": [0.25, -12.5], "raw_term": [9.0, 9.0], "term": [1.204, 0.5]}
    line = balanced(readings, ("flair", "t1ce")).getvalue()
    assert line == (
        "epoch 1/1, step 3/3, loss 0.5, 00:00 left; flair score 0.250 B 1.20; "
        "t1ce score -12.500 B 0.50\n"
    )


@pytest.mark.parametrize(
    ("readings", "told"),
    [({"term": [1.5]}, "; flair B 1.50"), ({"score": [float("nan")]}, "; flair score nan"),
     ({"distance": [1.0]}, ""), ({}, "")],
)  # fmt: skip
def test_what_a_method_does_not_measure_is_left_out(readings, told):
    line = balanced(readings, ("flair",)).getvalue()
    assert line == f"epoch 1/1, step 3/3, loss 0.5, 00:00 left{told}\n"


def test_slow_loading_is_reported_with_a_hint():
    line = train(steps=20, epochs=1, loading=0.006, stepping=0.002)[0]
    share = int(re.match(r"loading (\d+) % of the time, step (\d+) %; more loader", line)[1])
    assert 30 < share < 95


def test_fast_loading_is_reported_without_a_hint_and_without_the_first_step():
    class SlowStart(Loader):
        def __iter__(self):
            time.sleep(0.5)
            return super().__iter__()

    stream = io.StringIO()
    engine = Engine(lambda engine, batch: time.sleep(0.01))
    TrainingProgress(stream=stream).attach(engine)
    engine.run(SlowStart(20), max_epochs=1)
    line = stream.getvalue().splitlines()[0]
    assert int(re.fullmatch(r"loading (\d+) % of the time, step \d+ %", line)[1]) < 30


@pytest.mark.filterwarnings("error")
def test_loss_with_a_graph_is_read_without_a_warning():
    torch.set_warn_always(True)
    try:
        lines = train(torch.tensor([0.25, 0.75], requires_grad=True), epochs=1)
    finally:
        torch.set_warn_always(False)
    assert "loss 0.5" in lines[-1]


def test_a_short_run_has_no_loading_line():
    assert none("loading" in line for line in train(steps=19, epochs=1))


def test_unknown_epoch_length_leaves_the_time_open_until_it_is_known():
    stream = io.StringIO()
    engine = Engine(lambda engine, batch: 1.0)
    TrainingProgress(stream=stream, interval=0.0).attach(engine)
    engine.run((i for i in range(3)), max_epochs=1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 1/1, step 1/?, loss 1"
    assert lines[-1] == "epoch 1/1, step 3/3, loss 1, 00:00 left"
