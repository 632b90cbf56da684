"""What a terminal shows: a pseudo-terminal is written to, and its screen put together again."""

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
from tqdm import tqdm

from cggm.runs.watch.progress import TrainingProgress

NAMES = ("flair", "t1ce", "t1", "wav2vec_2_large_robust_last_hidden_state")


class Terminal:
    """A pseudo-terminal of some columns and 24 rows."""

    def __init__(self, columns=80):
        self.columns = columns

    def __enter__(self):
        self.reader, writer = pty.openpty()
        ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self.columns, 0, 0))
        self.stream = os.fdopen(writer, "w")
        self._text = ""
        return self

    def __exit__(self, *error):
        self.stream.close()
        os.close(self.reader)

    def text(self):
        """Everything that was written so far."""
        self.stream.flush()
        while select.select([self.reader], [], [], 0.1)[0]:
            self._text += os.read(self.reader, 10**6).decode()
        return self._text

    def screen(self):
        """The lines as they stand now; a line that is too wide goes on in the next one."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|.", self.text(), re.DOTALL):
            row += {"\n": 1, "\x1b[A": -1}.get(part, 0)
            if part == "\r":
                column = 0
            elif part not in ("\n", "\x1b[A"):
                row, column = (row + 1, 0) if column == self.columns else (row, column)
                rows += [""] * (row + 1 - len(rows))
                line = rows[row].ljust(column)
                rows[row] = line[:column] + part + line[column + 1 :]
                column += 1
            rows += [""] * (row + 1 - len(rows))
        return [line.rstrip() for line in rows]


def train(terminal, *, steps=25, epochs=2, seconds=0.0, refresh=0.0, names=(), after=None):
    """Trains with a learning rate and readings of each modality."""

    def step(engine, batch):
        time.sleep(seconds)
        shares = torch.arange(len(names)) / 4
        engine.state.balance = {"score": shares, "term": 1 + shares}
        return 0.5

    engine = Engine(step)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0123)
    progress = TrainingProgress(
        optimizer, stream=terminal.stream, refresh=refresh, modalities=names
    )
    progress.attach(engine)
    if after is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, after)
    engine.run(range(steps), max_epochs=epochs)


def test_bar_of_the_whole_run_with_a_line_for_each_modality():
    seen = []
    with Terminal() as terminal:
        train(terminal, names=NAMES, after=lambda engine: seen.append(terminal.screen()))
        seen.append(terminal.screen())
    bars = ["epoch 1/2:  50%.* 25/50", "epoch 2/2: 100%.* 50/50", "epoch 2/2: 100%.* 50/50"]
    for screen, bar in zip(seen, bars, strict=True):
        assert screen[0].startswith("loading ")
        assert re.fullmatch(rf"{bar} \[00:\d\d<00:\d\d, loss 0\.5, lr 0\.0123\]", screen[1])
        assert screen[2:6] == [
            "  flair                              score   0.000   B  1.00",
            "  t1ce                               score   0.250   B  1.25",
            "  t1                                 score   0.500   B  1.50",
            "  wav2vec_2_large_robust_last_h...   score   0.750   B  1.75",
        ]
        assert screen[6:] in ([], [""])


def test_what_is_too_wide_is_cut_off_and_takes_no_second_line():
    with Terminal(columns=40) as terminal:
        train(terminal, names=NAMES, seconds=0.002)  # no remark on slow loading
        screen = terminal.screen()
    assert max(map(len, screen)) <= 40
    assert [line.split()[:1] for line in screen[1:]] == [
        ["epoch"], ["flair"], ["t1ce"], ["t1"], ["wav2vec_2_large_robust_last_h..."], []
    ]  # fmt: skip


def test_a_bar_of_the_validation_goes_below_and_away():
    seen = []

    def validate(engine):
        bar = tqdm(range(2), "Validating", file=terminal.stream, leave=False, mininterval=0)
        seen.extend(terminal.screen() for _ in bar)

    with Terminal() as terminal:
        train(terminal, names=NAMES[:2], after=validate)
        screen = terminal.screen()
    assert [line.split()[0] for line in seen[-1][1:5]] == ["epoch", "flair", "t1ce", "Validating:"]
    assert [line.split()[:1] for line in screen[1:]] == [["epoch"], ["flair"], ["t1ce"], []]


def test_it_is_redrawn_at_a_low_rate():
    with Terminal() as terminal:
        train(terminal, steps=100, epochs=1, seconds=0.005, refresh=0.25, names=NAMES[:2])
        text = terminal.text()
    assert 2 <= text.count("flair") <= 6


def test_without_readings_there_is_the_bar_alone():
    with Terminal() as terminal:
        train(terminal)
        screen = terminal.screen()
    assert screen[1].startswith("epoch 2/2: 100%|")
    assert screen[2:] == [""]


def test_a_resumed_run_starts_the_bar_where_it_was():
    with Terminal() as terminal:
        engine = Engine(lambda engine, batch: 0.5)
        engine.load_state_dict({"epoch": 3, "epoch_length": 10, "max_epochs": 4})
        TrainingProgress(stream=terminal.stream).attach(engine)
        engine.run(range(10), max_epochs=4)
        text = terminal.text()
    assert "30/40" in text
    assert "40/40" in text


def test_an_error_leaves_what_was_shown_and_goes_on():
    def fail(engine):
        raise ZeroDivisionError

    with Terminal() as terminal:
        with pytest.raises(ZeroDivisionError):
            train(terminal, names=NAMES[:1], after=fail)
        assert terminal.screen()[1].startswith("epoch 1/2:  50%|")
        assert terminal.screen()[2].startswith("  flair")
        assert terminal.text().endswith("\n")
