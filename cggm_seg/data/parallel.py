"""The same work for many cases in several processes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from cggm.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def map_processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results in the order in which they are ready; in this process where one worker suffices.

    Workers import the main module: a script needs ``if __name__ == "__main__"``. They end when
    this process does, however it ends.

    Args:
        function: Defined at the top of a module, or a partial of such a one. It goes to each
            worker once, its arguments with it.
        items: Its arguments, one each.
        workers: Processes at most.

    Raises:
        UserError: If a worker was killed.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the caller may hold threads, and these modules import without torch.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (function,)) as pool:
        jobs = [pool.submit(_call, item) for item in items]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            what = "Expected every worker to finish, but one was killed, often for want of memory."
            raise UserError(
                what, "Run it again with fewer workers; what is done is kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]  # of this worker


def _start_worker(function: Callable[[T], R]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:  # noqa: ANN401
    return _function(item)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
