"""Worker processes that do the same work for many items: read, cache or verify cases."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.synchronize import Event
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
        UserError: If a worker was killed, or could not start.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    if _imports_main_module():
        # The parent explains it; a message of every worker would only hide that one.
        os._exit(1)
    # Spawned, not forked: the caller may hold threads, and these modules import without torch.
    context = get_context("spawn")
    started = context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (function, started)) as pool:
        try:
            jobs = [pool.submit(_call, item) for item in items]
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise _broken(started.is_set()) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _imports_main_module() -> bool:
    """Whether this is a worker that runs a caller's script once more, for want of a main guard."""
    # What multiprocessing itself asks before it refuses to start a process from there.
    return getattr(current_process(), "_inheriting", False)


def _broken(started: bool) -> UserError:
    if started:
        what = "Expected every worker to finish, but one was killed, often for want of memory."
        return UserError(what, "Run it again with fewer workers; what is done is kept.")
    return UserError(
        "Expected worker processes to start, but none did: each of them imports the script that "
        "was run, and so does its work a second time.",
        'Put what the script does under `if __name__ == "__main__":`, or ask for one worker.',
    )


_function: Callable[[Any], Any]  # of this worker


def _start_worker(function: Callable[[T], R], started: Event) -> None:
    global _function
    _function = function
    started.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:  # noqa: ANN401
    return _function(item)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
