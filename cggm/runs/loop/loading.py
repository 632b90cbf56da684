"""A loader that says which case it lost: one whose worker died, or one that cannot be read."""

import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from cggm.errors import DataError, UserError
from cggm.runs.loop.signals import ignore_signals

T = TypeVar("T", covariant=True)
Index = tuple[int, int]
_FAREWELL = 1  # seconds
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)")


class CaseLoader(DataLoader[T]):
    """A ``DataLoader`` over ``(epoch, position)`` that names the case at fault.

    A :class:`~cggm.errors.UserError` of the data set arrives as it was raised, any other exception
    as a :class:`~cggm.errors.DataError` of the case, caused by one that holds the worker's
    traceback. A worker that was killed is noticed at any time, in the midst of a step as well:
    wrap the training in :meth:`naming_lost_cases`. The process should end after that: it is no
    longer told of workers that die, other than by the loader's own polling.

    Args:
        dataset: Items by ``(epoch, position)``.
        batches: Lists of such indices.
        name: Position to the identifier of its case.
        workers: Processes that read; 0 reads in this one.
        pin_memory: Whether batches are copied to pinned memory.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        batches: Sampler[list[Index]],
        *,
        name: Callable[[int], str],
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._name = name
        reading = torch.full((max(workers, 1), 3), -1)
        self._reading: Tensor = reading.share_memory_()  # type: ignore[no-untyped-call]
        super().__init__(
            _NamedDataset(dataset, name, self._reading),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=ignore_signals,
            # Without its own generator a loader draws from the one of dropout, once per start.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with self.naming_lost_cases():
            try:
                yield from map(_received, super().__iter__())
            except (OSError, EOFError) as error:  # a batch of tensors that a dead worker owned
                raise self._lost(self._dead(), "died") from error

    @contextmanager
    def naming_lost_cases(self) -> Iterator[None]:
        """Turn PyTorch's report of a dead worker into one that names the case it was reading.

        Raises:
            UserError: If a worker dies inside the block.
        """
        try:
            yield
        except RuntimeError as error:
            # A cause, where there is one, knows the signal.
            report = _DEATH.match(str(error.__cause__)) or _DEATH.match(str(error))
            if report is None:
                raise
            # As each other worker ends, PyTorch would raise the report again, wherever that is.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            dead = [int(pid) for pid in report[1].split(",")]
            raise self._lost(dead, report[2].partition(". ")[0].rstrip(".")) from None

    def _dead(self) -> list[int]:
        """Workers that ended; their connections end a little earlier."""
        end = time.monotonic() + _FAREWELL
        dead: list[int] = []
        while not dead and time.monotonic() < end:
            alive = {child.pid for child in active_children()}
            dead = [pid for pid in self._reading[:, 0].tolist() if pid not in alive]
        return dead

    def _lost(self, dead: Sequence[int], how: str) -> UserError:
        """What to say of dead workers."""
        rows = self._reading.tolist()
        cases = [self._name(place) for pid, _, place in rows if pid in dead and place >= 0]
        doing = f"while it read {', '.join(cases)}" if cases else "between two cases"
        return UserError(
            f"A loader worker {how} {doing}.",
            "Often memory ran out: give fewer --workers and continue with --resume. If it is lost "
            "at the same case again, check the files of that case.",
        )


@dataclass(frozen=True)
class _Failure:
    """An item that could not be read, on its way to the training's process."""

    error: UserError
    trace: str | None

    @property
    def cause(self) -> Exception | None:
        return None if self.trace is None else RuntimeError(f"in a loader worker:\n{self.trace}")


@dataclass(frozen=True)
class _NamedDataset(Dataset[T], Generic[T]):
    """Notes what each worker reads, and gives errors as items.

    Args:
        dataset: What is read.
        name: Position to the identifier of its case.
        reading: Process, epoch and position of each worker, -1 between two items, in shared memory.
    """

    dataset: Dataset[T]
    name: Callable[[int], str]
    reading: Tensor

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Index) -> T | _Failure:  # type: ignore[override]
        worker = get_worker_info()
        note = self.reading[worker.id if worker else 0]
        note.copy_(torch.tensor([os.getpid(), *index]))
        try:
            return self.dataset[index]
        except UserError as error:
            return _Failure(error, None)
        except Exception as error:
            what = f"Expected to read this case, but got {type(error).__name__}: {error}."
            problem = DataError(self.name(index[1]), None, what, "Check its files and the disk.")
            return _Failure(problem, traceback.format_exc())
        finally:
            note[2] = -1


def _received(batch: Any) -> Any:  # noqa: ANN401
    if isinstance(batch, _Failure):
        raise batch.error from batch.cause
    return batch


def _collate(items: list[Any]) -> Any:  # noqa: ANN401
    failures = (item for item in items if isinstance(item, _Failure))
    return next(failures, None) or default_collate(items)
