"""The display of a training for who watches it: a bar and a line for each modality."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from cggm.runs.watch.journal import StepTimes

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_LONGEST_NAME = 32  # characters
_DIGITS = {"score": 3, "B": 2}
_WIDTHS = {"score": 7, "B": 5}


@dataclass(frozen=True)
class Figures:
    """What is shown of a training at one moment.

    Args:
        epoch: The epoch under way, counted from 1.
        epochs: Of the whole run, ``None`` where not known.
        step: Steps so far.
        steps: Of the whole run, ``None`` where not known.
        loss: Of the last step, ``None`` where there is none.
        rate: Learning rate, likewise.
        modalities: Modality to its figures by name, in order: ``{"flair": {"score": 0.4}}``.
    """

    epoch: int
    epochs: int | None
    step: int
    steps: int | None
    loss: float | None
    rate: float | None
    modalities: Mapping[str, Mapping[str, float]]

    @property
    def progress(self) -> str:
        """Epoch of epochs, in words."""
        return f"epoch {self.epoch}/{self.epochs or '?'}"

    @property
    def state(self) -> str:
        """Loss and learning rate, in words."""
        loss = None if self.loss is None else f"loss {self.loss:.4g}"
        rate = None if self.rate is None else f"lr {self.rate:.3g}"
        return ", ".join(filter(None, [loss, rate]))


class Display(Protocol):
    """Something that shows figures."""

    def show(self, figures: Figures) -> None:
        """Show the figures of now."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave what was shown last."""


class Terminal:
    """A bar of the whole run, and below it a line for each modality, redrawn in place.

    Args:
        stream: A terminal.
        figures: Of the start.
    """

    def __init__(self, stream: TextIO, figures: Figures) -> None:
        self._stream = stream
        self._lines: list[tqdm] = []
        self._bar = tqdm(
            total=figures.steps,
            initial=figures.step,
            file=stream,
            smoothing=0,
            dynamic_ncols=True,
            bar_format=_BAR,
            position=0,
            leave=True,
        )

    def show(self, figures: Figures) -> None:
        """Redraw everything; what is too wide for the terminal is cut off."""
        bar = self._bar
        bar.total, bar.n = figures.steps, figures.step
        bar.set_description_str(figures.progress, refresh=False)
        bar.set_postfix_str(figures.state, refresh=False)
        bar.refresh()
        texts = _aligned(figures.modalities)
        for position in range(len(self._lines) + 1, len(texts) + 1):
            line = tqdm(file=self._stream, bar_format="{desc}", position=position, leave=True)
            self._lines.append(line)
        width = bar.format_dict["ncols"] or 80
        for line, text in zip(self._lines, texts, strict=False):
            line.set_description_str(text[: width - 1])

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._bar.write(line, file=self._stream)

    def close(self) -> None:
        """Leave bar and lines as they are, and go on below them."""
        for shown in (self._bar, *self._lines):
            shown.close()


class Lines:
    """A line of all figures each time.

    Args:
        stream: Where to write.
        figures: Of the start.
    """

    def __init__(self, stream: TextIO, figures: Figures) -> None:
        self._stream = stream
        self._first = figures.step
        self._started = time.monotonic()

    def show(self, figures: Figures) -> None:
        """Write a line; the time left supposes that all steps take equally long."""
        parts = [figures.progress, f"step {figures.step}/{figures.steps or '?'}", figures.state]
        if figures.steps is not None:
            taken = (time.monotonic() - self._started) / max(figures.step - self._first, 1)
            parts.append(f"{tqdm.format_interval(taken * (figures.steps - figures.step))} left")
        line = ", ".join(filter(None, parts))
        modalities = [f"{n} {_words(own)}" for n, own in figures.modalities.items()]
        self.say("; ".join([line, *modalities]))

    def say(self, line: str) -> None:
        """Write any line."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to do."""


def _words(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.{_DIGITS[name]}f}" for name, value in values.items())


def _aligned(modalities: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each modality, alike figures below each other."""
    names = [_shortened(name) for name in modalities]
    width = max(map(len, names), default=0)
    return [
        f"  {name:<{width}}"
        + "".join(f"   {k} {v:{_WIDTHS[k]}.{_DIGITS[k]}f}" for k, v in values.items())
        for name, values in zip(names, modalities.values(), strict=True)
    ]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


_REPORT_AFTER = 20  # steps
_SLOW_LOADING = 0.3  # share of the time
_SHOWN = {"score": "score", "term": "B"}  # a balancer's readings, and what they are called


class TrainingProgress:
    """Shows loss, learning rate, epoch, the time left, and score and B of each modality.

    On a terminal that is a bar of the whole run and a line for each modality. Elsewhere it is a
    line of the same figures per epoch, and more where an epoch takes long. Nothing is asked of the
    device in between. After 20 steps a line says what share of the time went into loading data; the
    first step, in which loaders start, is left out. The time left supposes that all epochs take
    equally long.

    Args:
        optimizer: Whose learning rate is shown, that of the first parameter group.
        modalities: Names of what a balancer's readings are of; those that
            :class:`cggm.BalanceHandler` left in ``engine.state.balance`` are shown. B is the factor
            in use.
        refresh: Seconds between two refreshes on a terminal; each one waits for the device.
        interval: Seconds between two lines within an epoch, elsewhere.
        stream: Where to write; standard error where not given.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        modalities: Sequence[str] = (),
        refresh: float = 0.5,
        interval: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._modalities = modalities
        self._stream = stream or sys.stderr
        self._seconds = refresh if self._stream.isatty() else interval
        self._times = StepTimes()
        self._display: Display | None = None

    def attach(self, engine: Engine) -> None:
        """Follow a training; on other ranks than the first of a distributed run, do nothing.

        Args:
            engine: The trainer. Its output is the loss: a number, a tensor, a mapping with
                ``"loss"``, or a sequence that starts with one of these.
        """
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._wait_for_device)
        self._times.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._show)
        for end in (Events.COMPLETED, Events.TERMINATE, Events.INTERRUPT):
            engine.add_event_handler(end, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _start(self, engine: Engine) -> None:
        self._first_iteration = engine.state.iteration
        self._shown_at = time.monotonic()
        kind = Terminal if self._stream.isatty() else Lines
        self._display = kind(self._stream, self._figures(engine))

    def _wait_for_device(self, engine: Engine) -> None:
        """So that the steps whose share is reported are over when their time is taken."""
        if engine.state.iteration - self._first_iteration in (1, _REPORT_AFTER):
            _loss(engine.state.output)

    def _after_step(self, engine: Engine) -> None:
        step = engine.state.iteration - self._first_iteration
        if step == 1:
            self._times.restart()
        if step == _REPORT_AFTER:
            self._report_loading()
        if time.monotonic() - self._shown_at >= self._seconds:
            self._show(engine)

    def _show(self, engine: Engine) -> None:
        assert self._display is not None
        self._display.show(self._figures(engine))
        self._shown_at = time.monotonic()

    def _figures(self, engine: Engine) -> Figures:
        state = engine.state
        return Figures(
            epoch=state.epoch,
            epochs=state.max_epochs,
            step=state.iteration,
            steps=_total(engine),
            loss=_loss(state.output),
            rate=None if self._optimizer is None else self._optimizer.param_groups[0]["lr"],
            modalities=self._by_modality(engine),
        )

    def _by_modality(self, engine: Engine) -> dict[str, dict[str, float]]:
        readings: Mapping[str, Tensor] = getattr(engine.state, "balance", {})
        columns = {word: readings[key].tolist() for key, word in _SHOWN.items() if key in readings}
        return {
            name: {word: values[i] for word, values in columns.items()}
            for i, name in enumerate(self._modalities)
            if columns
        }

    def _report_loading(self) -> None:
        share = self._times.loading / max(self._times.loading + self._times.stepping, 1e-9)
        line = f"loading {share:.0%} of the time, step {1 - share:.0%}".replace("%", " %")
        if share > _SLOW_LOADING:
            line += "; more loader workers or a cache would speed this up"
        assert self._display is not None
        self._display.say(line)

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None

    def _close_and_raise(self, error: BaseException) -> None:
        self._close()
        raise error


def _total(engine: Engine) -> int | None:
    """Steps of the whole run, where that is known yet."""
    state = engine.state
    if state.max_iters is not None:
        return int(state.max_iters)
    if state.max_epochs is None or state.epoch_length is None:
        return None
    return int(state.max_epochs * state.epoch_length)


def _loss(output: object) -> float | None:
    if isinstance(output, Mapping):
        return _loss(output.get("loss"))
    if isinstance(output, Sequence) and output and not isinstance(output, str):
        return _loss(output[0])
    if isinstance(output, Tensor):
        output = output.detach().mean()
    return float(output) if hasattr(output, "__float__") else None
