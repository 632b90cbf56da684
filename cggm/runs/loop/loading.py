"""A loader that says which case it lost: one whose worker died, or one that cannot be read."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from threading import current_thread, main_thread
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from cggm.errors import DataError, UserError, is_out_of_memory, out_of_memory
from cggm.runs.loop.signals import ignore_signals

T = TypeVar("T", covariant=True)
Index = tuple[int, int]
_FAREWELL = 1  # seconds
_UNSENT = 70  # exit code of a worker
_ROOM = (
    "Give --workers 0 or fewer workers, or a larger /dev/shm (docker run --shm-size 2g); then "
    "continue with --resume."
)


class CaseLoader(DataLoader[T]):
    """A ``DataLoader`` over ``(epoch, position)`` that names the case at fault.

    A :class:`~cggm.errors.UserError` of the data set arrives as it was raised, any other exception
    as a :class:`~cggm.errors.DataError` of the case, caused by one that holds the worker's
    traceback. A worker that was killed is noticed at any time, in the midst of a step as well:
    wrap the training in :meth:`naming_lost_cases`.

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
        self._running: Any = None
        self._known_deaths: dict[int, int] = {}
        reading = torch.full((max(workers, 1), 3), -1)
        self._reading: Tensor = reading.share_memory_()  # type: ignore[no-untyped-call]
        super().__init__(
            _NamedDataset(dataset, name, self._reading),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            # Without its own generator a loader draws from the one of dropout, once per start.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with self.naming_lost_cases():
            self._running, self._known_deaths = super().__iter__(), {}
            try:
                for number, batch in enumerate(map(_received, self._running)):
                    if not number:
                        self._note_need(batch)
                    yield batch
            except (OSError, EOFError) as error:  # a batch of tensors that a dead worker owned
                self._wait_for_a_death()
                raise self._lost() from error

    @contextmanager
    def naming_lost_cases(self) -> Iterator[None]:
        """Turn PyTorch's report of a dead worker into one that names the case it was reading.

        Workers are ended when the block is left, however it is.

        Raises:
            UserError: If a worker dies inside the block.
        """
        try:
            yield
        except RuntimeError:
            if not self._deaths():
                raise
            raise self._lost() from None
        finally:
            self._end_workers()

    @property
    def _workers(self) -> list[Any]:
        """The processes that read."""
        return list(getattr(self._running, "_workers", ()))

    def _deaths(self) -> dict[int, int]:
        """Number to exit code of the workers that failed."""
        self._known_deaths |= {w.pid: w.exitcode for w in self._workers if w.exitcode}
        return self._known_deaths

    def _wait_for_a_death(self) -> None:
        """A worker's connections end a little earlier than itself."""
        end = time.monotonic() + _FAREWELL
        while not self._deaths() and time.monotonic() < end:
            time.sleep(0.01)

    def _end_workers(self) -> None:
        """Workers ignore signals, so that only this ends one that is stuck, within seconds."""
        self._deaths()  # those of the training, not those that follow
        workers, self._running = self._workers, None
        if not workers:
            return
        handles = hasattr(signal, "SIGCHLD") and current_thread() is main_thread()
        if handles:
            # As each worker ends, PyTorch would raise a report of it, wherever that is.
            earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in workers:
            worker.kill()
            worker.join(_FAREWELL)
        if handles and all(worker.exitcode is not None for worker in workers):
            signal.signal(signal.SIGCHLD, earlier)

    def _lost(self) -> UserError:
        """What to say of dead workers."""
        dead = self._deaths()
        rows = self._reading.tolist()
        # Once, where several workers died of the same case in different epochs.
        places = [place for pid, _, place in rows if pid in dead and place >= 0]
        cases = dict.fromkeys(map(self._name, places))
        doing = f"while it read {', '.join(cases)}" if cases else "between two cases"
        code = next(iter(dead.values()), None)
        if code == _UNSENT:
            what = f"A loader worker could not send a batch that it had put together, {doing}."
            return UserError(what, f"See what it said of it above. {_ROOM}")
        how = "died" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if how.endswith("SIGBUS"):  # a page of a mapped file that could not be had
            return UserError(f"A loader worker {how} {doing}: shared memory ran out.", _ROOM)
        return UserError(
            f"A loader worker {how} {doing}.",
            "Often memory ran out: give fewer --workers and continue with --resume. If it is lost "
            "at the same case again, check the files of that case.",
        )

    def _note_need(self, batch: object) -> None:
        """Say that batches on their way may fill the shared memory, before they do."""
        need = _bytes_of(batch) * self.num_workers * (self.prefetch_factor or 0)
        with suppress(OSError):  # there is none
            room = os.statvfs("/dev/shm")
            free = room.f_bavail * room.f_frsize
            if need > free / 2:
                print(
                    f"note: batches on their way take {need / 2**20:.0f} MB of shared memory, of "
                    f"which {free / 2**20:.0f} MB are free. {_ROOM}",
                    file=sys.stderr,
                    flush=True,
                )


def _begin_worker(number: int) -> None:
    ignore_signals(number)
    # A batch that cannot be sent would be dropped with a traceback, and be waited for forever.
    Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]


def _end_unsent(error: BaseException, batch: object) -> None:
    print(f"error: A loader worker could not send a batch: {error}.", file=sys.stderr, flush=True)
    os._exit(_UNSENT)


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
            if is_out_of_memory(error):
                return _Failure(out_of_memory(error), None)
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
    if failure := next(failures, None):
        return failure
    try:
        return default_collate(items)
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            return _Failure(out_of_memory(error), None)
        reason = str(error).partition("\n")[0]
        # In a worker a batch is laid into shared memory at once.
        where = " in shared memory" if get_worker_info() else ""
        what = f"A loader could not put a batch together{where}: {reason}."
        fix = _ROOM if where else "Check that all cases of a batch are alike."
        return _Failure(UserError(what, fix), traceback.format_exc())


def _bytes_of(batch: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(batch, Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        return sum(map(_bytes_of, batch.values()))
    return sum(map(_bytes_of, batch)) if isinstance(batch, list | tuple) else 0
