"""Signals that ask a training to end: it finishes its step, saves and leaves."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Self, TypeVar

T = TypeVar("T")
# SIGUSR1 is what SLURM's --signal sends, SIGHUP what a closed terminal does; Windows has neither
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Stopped(Exception):
    """A training ended before its time because a signal asked for it; its state is saved.

    Args:
        number: The signal.
        what: What was saved.
        run: What ``--resume`` has to be given.
    """

    def __init__(self, number: int, what: str, run: Path) -> None:
        super().__init__(number, what, run)
        self.number = number
        self.what = what
        self.run = run

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{name}: saved {self.what}; continue with --resume {self.run}"


class StopSignals:
    """While it is entered, SIGTERM, SIGUSR1, SIGHUP and a first Ctrl-C are noted and end nothing.

    A second Ctrl-C is a ``KeyboardInterrupt``. Signals that were ignored stay so: ``nohup`` ignores
    SIGHUP, and a shell Ctrl-C for what runs in the background. Handlers are restored on leaving.
    Outside of the main thread, where Python sets no handlers, it changes nothing. Where there are
    several ranks, a signal to one of them is one to all, and all have to ask for it at the same
    places.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._leaves = False
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._number = None
        if current_thread() is main_thread():
            heard = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._earlier = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._earlier = {}

    def requested(self) -> int | None:
        """The signal that asked for the end, if one did."""
        from cggm.distributed import largest_of_ranks

        return largest_of_ranks(self._number or 0) or None

    def unless_requested(self, function: Callable[[], T]) -> T | None:
        """What a function returns; ``None``, at once, where a signal comes before it is done.

        Several ranks end it together, so that none waits for another one that has left.

        Args:
            function: May be left in the middle: what it changes must not matter then.
        """
        from cggm.distributed import world_size

        if world_size() > 1:
            return None if self.requested() else function()
        self._leaves = True
        try:
            return function() if self._number is None else None
        except _Left:
            return None
        finally:
            self._leaves = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupt()
        first, self._number = self._number is None, self._number or number
        if first and self._leaves:
            raise _Left

    def _interrupt(self) -> None:
        if self._number is not None:
            raise KeyboardInterrupt
        # print() is no function to call while it may be under way
        with suppress(OSError):  # where the terminal is gone
            os.write(2, b"\nfinishing this step to save it; Ctrl-C again leaves at once\n")


def ignore_signals(worker: int) -> None:
    """Let a loader's process outlive a signal to the whole group, to serve the last step.

    Args:
        worker: Its number, as ``worker_init_fn`` is told.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Left(BaseException):
    """Leaves a function that a signal may leave."""
