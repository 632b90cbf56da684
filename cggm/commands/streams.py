"""Standard output and error that outlive the pipe or the terminal that they lead to."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_GONE = {errno.EPIPE, errno.EIO}  # a pipe whose reader left, a terminal that was closed


class LastingStream:
    """A text stream that swallows what nobody reads any more.

    ``| head`` must not end a training, nor must a closed terminal, and a command whose reader has
    left ends quietly. What the encoding of a terminal lacks is written as an escape.

    Args:
        stream: The stream; all else of it shows through.
    """

    def __init__(self, stream: Any) -> None:  # noqa: ANN401
        self._stream = stream
        self._gone = False
        with suppress(AttributeError, ValueError):  # no text file of its own, as in tests
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or nothing where the reader is gone."""
        if not self._gone:
            try:
                self._stream.write(text)
            except OSError as error:
                self._leave(error)
        return len(text)

    def writelines(self, lines: Any) -> None:  # noqa: ANN401
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is buffered."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError as error:
                self._leave(error)

    def _leave(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        self._gone = True
        # What is buffered still, and what others write to the descriptor, goes to nowhere.
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error are lasting inside of the block, and flushed at its end.

    Where the process was started without them (``>&-``) they lead nowhere: else the next files that
    it opens would have their numbers, and get what libraries print.
    """
    _open_missing()
    earlier = sys.stdout, sys.stderr
    lasting = [LastingStream(stream) for stream in earlier]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = earlier


def _open_missing() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 (has the lowest free number)
            os.set_inheritable(stream.fileno(), True)  # programs that it starts lack none either
            setattr(sys, name, stream)
