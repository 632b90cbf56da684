"""How a training in progress is shown: redrawn on a terminal, as lines elsewhere."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from tqdm import tqdm

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
