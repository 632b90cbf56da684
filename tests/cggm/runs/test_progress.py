import io
import os
import pty
import re
import select
import struct
import termios
import time
from fcntl import ioctl

import pytest
import torch
from ignite.engine import Engine, Events

from cggm.runs.progress import TrainingProgress


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
    lines = train(steps=10, epochs=1, stepping=0.05, interval=0.2, every=1)
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


def test_the_loss_is_read_every_few_steps_only():
    Watched.looks = 0
    train(torch.ones(()).as_subclass(Watched), steps=100, epochs=1, every=25)
    assert Watched.looks == 4 + 2 + 1  # every 25; steps 1 and 20; end of the epoch


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
    assert not any("loading" in line for line in train(steps=19, epochs=1))


def test_unknown_epoch_length_leaves_the_time_open_until_it_is_known():
    stream = io.StringIO()
    engine = Engine(lambda engine, batch: 1.0)
    TrainingProgress(stream=stream, interval=0.0).attach(engine)
    engine.run((i for i in range(3)), max_epochs=1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "epoch 1/1, step 1/?, loss 1"
    assert lines[-1] == "epoch 1/1, step 3/3, loss 1, 00:00 left"


class Terminal:
    """A pseudo-terminal of 100 columns."""

    def __enter__(self):
        self.reader, writer = pty.openpty()
        ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.stream = os.fdopen(writer, "w")
        return self

    def __exit__(self, *error):
        self.stream.close()
        os.close(self.reader)

    def text(self):
        self.stream.flush()
        text = b""
        while select.select([self.reader], [], [], 0.2)[0]:
            text += os.read(self.reader, 10**6)
        return text.decode()


def test_a_terminal_gets_a_bar_of_the_whole_run():
    with Terminal() as terminal:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0123)
        train(steps=25, epochs=2, stepping=0.005, optimizer=optimizer, stream=terminal.stream)
        text = terminal.text()
    assert re.search(r"epoch 1/2: +\d+%\|.*\| \d+/50 \[00:00<00:00, .*loss 0.5, lr 0.0123\]", text)
    assert re.search(r"epoch 2/2: 100%\|.*\| 50/50", text)
    assert re.search(r"\rloading \d+ % of the time, step \d+ %", text)
    assert text.endswith("\n")


def test_a_resumed_run_starts_the_bar_where_it_was():
    with Terminal() as terminal:
        engine = Engine(lambda engine, batch: 0.5)
        engine.load_state_dict({"epoch": 3, "epoch_length": 10, "max_epochs": 4})
        TrainingProgress(stream=terminal.stream).attach(engine)
        engine.run(Loader(10), max_epochs=4)
        text = terminal.text()
    assert "30/40" in text
    assert "40/40" in text


def test_an_error_closes_the_bar_and_goes_on():
    def fail(engine):
        raise ZeroDivisionError

    with Terminal() as terminal:
        engine = Engine(lambda engine, batch: 0.5)
        TrainingProgress(stream=terminal.stream).attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), fail)
        with pytest.raises(ZeroDivisionError):
            engine.run(Loader(10), max_epochs=1)
        assert terminal.text().endswith("\n")
