"""What a person watching a training sees."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

_REPORT_AFTER = 20  # steps
_SLOW_LOADING = 0.3  # share of the time


class TrainingProgress:
    """Shows loss, learning rate, epoch and the time left of the whole run.

    On a terminal that is a bar. Elsewhere it is a line per epoch, and more where an epoch takes
    long. After 20 steps a line says what share of the time went into loading data; the first step,
    in which loaders start, is left out. The time left supposes that all epochs take equally long.

    Args:
        optimizer: Whose learning rate is shown, that of the first parameter group.
        every: Steps between two looks at the loss; each one waits for the device.
        interval: Seconds between two lines within an epoch.
        stream: Where to write; standard error where not given.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        every: int = 10,
        interval: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._every = every
        self._interval = interval
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._loss: float | None = None

    def attach(self, engine: Engine) -> None:
        """Follow a training; on other ranks than the first of a distributed run, do nothing.

        Args:
            engine: The trainer. Its output is the loss: a number, a tensor, a mapping with
                ``"loss"``, or a sequence that starts with one of these.
        """
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._before_batch)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._after_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        for end in (Events.COMPLETED, Events.TERMINATE, Events.INTERRUPT):
            engine.add_event_handler(end, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _start(self, engine: Engine) -> None:
        self._first_iteration = engine.state.iteration
        self._started = self._last_line = time.monotonic()
        self._loading = self._stepping = 0.0
        if self._stream.isatty():
            self._bar = tqdm(
                total=_total(engine),
                initial=engine.state.iteration,
                file=self._stream,
                smoothing=0,
                dynamic_ncols=True,
                unit="step",
            )

    def _before_batch(self) -> None:
        self._mark = time.monotonic()

    def _after_batch(self) -> None:
        self._loading += self._lap()

    def _after_step(self, engine: Engine) -> None:
        step = engine.state.iteration - self._first_iteration
        if engine.state.iteration % self._every == 0 or step in (1, _REPORT_AFTER):
            self._loss = _loss(engine.state.output)
        self._stepping += self._lap()
        if step == 1:
            self._loading = self._stepping = 0.0
        if step == _REPORT_AFTER:
            self._report_loading()
        if self._bar is not None:
            self._update_bar(engine, self._bar)
        elif time.monotonic() - self._last_line >= self._interval:
            self._write_line(engine)

    def _after_epoch(self, engine: Engine) -> None:
        self._loss = _loss(engine.state.output)
        if self._bar is not None:
            self._bar.total = _total(engine)
            self._update_bar(engine, self._bar)
        else:
            self._write_line(engine)

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before

    def _report_loading(self) -> None:
        share = self._loading / max(self._loading + self._stepping, 1e-9)
        line = f"loading {share:.0%} of the time, step {1 - share:.0%}".replace("%", " %")
        if share > _SLOW_LOADING:
            line += "; more loader workers or a cache would speed this up"
        self._say(line)

    def _update_bar(self, engine: Engine, bar: tqdm) -> None:
        bar.set_description(_epoch(engine), refresh=False)
        bar.set_postfix_str(self._figures(), refresh=False)
        bar.update(engine.state.iteration - bar.n)

    def _write_line(self, engine: Engine) -> None:
        self._last_line = time.monotonic()
        total, done = _total(engine), engine.state.iteration
        parts = [_epoch(engine), f"step {done}/{total or '?'}", self._figures()]
        if total is not None:
            rate = (self._last_line - self._started) / max(done - self._first_iteration, 1)
            parts.append(f"{tqdm.format_interval(rate * (total - done))} left")
        self._say(", ".join(part for part in parts if part))

    def _figures(self) -> str:
        loss = None if self._loss is None else f"loss {self._loss:.4g}"
        rate = None if self._optimizer is None else self._optimizer.param_groups[0]["lr"]
        return ", ".join(filter(None, [loss, None if rate is None else f"lr {rate:.3g}"]))

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _close_and_raise(self, error: BaseException) -> None:
        self._close()
        raise error


def _epoch(engine: Engine) -> str:
    return f"epoch {engine.state.epoch}/{engine.state.max_epochs or '?'}"


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
