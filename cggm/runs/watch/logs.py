"""Logs of a run: JSON lines for programs, TensorBoard events for eyes."""

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cggm.errors import UserError
from cggm.runs.storage import parse_json, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class JsonLines:
    """Appends one JSON object per line, flushed at once.

    A last line that a crash cut short is removed on opening. NaN and infinities, which JSON does
    not have, are written as null; tensors and NumPy numbers with one element as numbers.

    Args:
        path: The file, made where absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object.

        Args:
            record: Numbers, strings, booleans, ``None``, and mappings and sequences of them.
        """
        self._file.write(json.dumps(_jsonable(record), allow_nan=False) + "\n")
        self._file.flush()

    def truncate_after(self, *, iteration: int) -> None:
        """Drop what lies beyond a checkpoint, so that a resumed run does not log it twice.

        Args:
            iteration: Objects with a larger ``"iteration"`` go.
        """
        self._file.close()
        kept = [r for r in read_jsonl(self.path) if r.get("iteration", 0) <= iteration]
        write_atomically(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Args:
        path: The file; a last line without its end, as a crash leaves it, is ignored.

    Raises:
        UserError: If another line is no JSON object.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_parsed(line, path, number) for number, line in enumerate(lines, 1)]


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Args:
        name: Letters, digits, ``/``, ``_``, ``-`` and ``.``, which TensorBoard keeps.
        pixels: Red, green and blue, uint8, shape ``(H, W, 3)``.
    """

    name: str
    pixels: "NDArray[np.uint8]"


class TensorBoardLog:
    """TensorBoard events of a run.

    Args:
        folder: Folder of the event files.
        resumed_at: Iteration of the checkpoint that a run continues from; later events are hidden.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resumed_at is None else resumed_at + 1
        self._earlier_hook = threading.excepthook
        threading.excepthook = self._report_other_threads
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, record: Mapping[str, Any], *, iteration: int) -> None:
        """Add the numbers of a record; anything else in it is left out.

        Args:
            record: Numbers by name, possibly nested: ``{"score": {"flair": 0.4}}`` is
                ``score/flair``.
            iteration: Where on the horizontal axis.
        """
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, iteration)

    def show(self, picture: Picture, *, iteration: int) -> None:
        """Add a picture, beside earlier ones of the same name.

        Args:
            picture: The picture.
            iteration: When it was made.
        """
        self._writer.add_image(picture.name, picture.pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write what is pending and close the file."""
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._earlier_hook

    def _report_other_threads(self, failure: threading.ExceptHookArgs) -> None:
        # What fails in the writer's own thread is raised by the writer as well.
        if type(failure.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            self._earlier_hook(failure)


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, those of nested ones by names like ``score/flair``.

    Args:
        record: What is no finite number is left out.
        prefix: Put before each name.
    """
    for key, value in _jsonable(record).items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def _jsonable(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {number}: expected a JSON object, but got {line[:40]!r}.",
            "Delete that line.",
        )
    return record
