"""Several processes that train, evaluate or predict as one: ranks that torchrun starts.

Every function leaves a process that runs alone as it is, and makes no process group for it.
"""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from cggm.errors import UserError
from cggm.runs.cli import choose_device
from cggm.runs.folder import RunFolder
from cggm.runs.loop import Stopped
from cggm.runs.options import RunOptions

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Main = Callable[[Sequence[str]], int | None]

_TIMEOUT = timedelta(minutes=30)  # that a rank waits for another one in a collective call
_PROBE = 977  # tag of a message that nobody waits for
_LISTENS = 1.0  # seconds
_PATIENCE = 10.0  # seconds that a rank leaves the first one to say the same


_ENDS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
_SAVES = 240  # seconds that ranks get to save


def start_ranks(argv: Sequence[str], script: Callable[[Sequence[str]], list[str]]) -> int:
    """Run torchrun, whose end is one line and the exit code of what ended it.

    The signals of ``--signal`` of SLURM and of a terminal reach the ranks, which have time to save.

    Args:
        argv: torchrun's arguments.
        script: Given the script's name and its arguments, those to be run.

    Returns:
        The exit code of the first rank that failed, 1 where it was killed, 128 and the signal's
        number where one asked for the end.

    Raises:
        UserError: If a rank was killed, or torchrun cannot start.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as run_ranks

    ends = (f"--signals-to-handle={','.join(_ENDS)}", f"--shutdown-timeout={_SAVES}")
    arguments = parse_args([*ends, *argv])  # type: ignore[no-untyped-call]
    if not arguments.module:
        words = [arguments.training_script, *arguments.training_script_args]
        arguments.training_script, *arguments.training_script_args = script(words)
    # PyTorch keeps one store through all starts otherwise, where ranks find the addresses of those
    # that ended and never connect.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    logging.disable(logging.ERROR)  # torchrun's tables; ranks say themselves what happened
    try:
        run_ranks(arguments)  # type: ignore[no-untyped-call]
    except SignalException as stop:
        print(f"{stop.sigval.name}: the ranks were told to save and to end.", file=sys.stderr)
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise UserError(
            f"Rank {rank} was killed ({name}), and the others were ended.",
            "Was memory short? Continue a training with --resume, or give --max-restarts.",
        ) from None
    return 0


def ranked(main: Main) -> Main:
    """A script's main function as that of one rank: what all have to say is said once.

    Ranks other than the first print nothing. One that ends with a mistake of the user's leaves the
    first rank time to say the same, upon which torchrun ends it; then it speaks for itself.

    Args:
        main: Takes the arguments, see :func:`cggm.runs.cli.run`.
    """

    def run_as_rank(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            what = f"Rank {_rank()} lost the connection to another rank."
            fix = "See what that one said last, then continue a training with --resume."
            raise UserError(what, fix) from error

    def run_quietly(argv: Sequence[str]) -> int | None:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            try:
                return run_as_rank(argv)
            except (UserError, OSError):
                time.sleep(_PATIENCE)
                raise
            except Stopped as stop:
                time.sleep(_PATIENCE / 10)
                return 128 + stop.number

    return run_quietly if _rank() else run_as_rank


def end_process(code: int) -> NoReturn:
    """End a script that :func:`ranked` made one rank of several; alone, as every script ends.

    Gloo's threads outlive its group. One that lets go of a tensor while the interpreter ends cannot
    get its lock any more and aborts the process, upon which torchrun ends the others: a
    rank does what is left to be done at an end, and goes without taking the interpreter down.

    Args:
        code: The exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise SystemExit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a closed pipe, or a closed stream
            stream.flush()
    os._exit(code)


@contextmanager
def joined(device: str | None) -> Iterator["torch.device"]:
    """Join the other ranks, by NCCL on GPUs and by Gloo on processors; each gets a GPU of its own.

    Enter it before anything else asks for a GPU; within another one it changes nothing, because no
    second group can be made. After an error the group stays: the others wait in
    it while this rank says what happened, until torchrun ends them.

    Args:
        device: ``cpu`` or ``cuda``; CUDA if there is one, where ``None``.

    Yields:
        The device to compute on.

    Raises:
        UserError: If it is not there, or a machine has fewer GPUs than ranks.
    """
    from torch.distributed import is_initialized

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_initialized():
        yield choose_device(device)
        return
    if device not in (None, "cpu", "cuda"):
        raise UserError(
            f"Expected --device cpu or cuda for several ranks, but got {device}.",
            "Each rank takes a GPU of its own; choose them by CUDA_VISIBLE_DEVICES.",
        )
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or Ignite would move every rank to a GPU
    # Ignite would take SLURM's tasks for ranks, but torchrun starts several in one.
    os.environ.pop("SLURM_JOB_ID", None)
    import ignite.distributed as idist

    chosen = choose_device(device)
    if chosen.type == "cuda":
        _check_gpus()
    idist.initialize("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
    yield chosen
    idist.finalize()


def check_ranks_agree(
    values: Mapping[str, object],
    when: str = "",
    fix: str = "Start all ranks with the same command, code and files.",
) -> None:
    """Refuse ranks that differ in what they must share; every rank has to call it.

    Args:
        values: By name what has to be the same, such as ``{"data": digest}``; it is pickled.
        when: Since when, if they were the same before.
        fix: What to do about it.

    Raises:
        UserError: On every rank, naming what differs.
    """
    from cggm.distributed import gather_objects

    first, *others = gather_objects(dict(values))
    for number, other in enumerate(others, 1):
        differing = [name for name in first if other.get(name) != first[name]]
        if differing:
            names = ", ".join(differing)
            what = f"Expected the same {names} on all ranks{when}, but rank {number} differs "
            raise UserError(f"{what}from rank 0.", fix)


def share_of_batch(batch_size: int, least: int = 1) -> int:
    """This rank's part of a batch, so that a step sees the same samples on any number of ranks.

    Args:
        batch_size: Samples of a step, on all ranks together.
        least: The smallest part that will do.

    Raises:
        UserError: If the ranks cannot share the batch evenly, or a part is too small.
    """
    import ignite.distributed as idist

    world = idist.get_world_size()
    if batch_size % world or batch_size < least * world:
        raise UserError(
            f"Expected batch_size to be a multiple of {world} and at least {least * world}, "
            f"because {world} ranks share each batch, but got {batch_size}.",
            f"Give --batch_size {max(least, -(-batch_size // world)) * world}, or another number "
            "of ranks.",
        )
    return batch_size // world


def same_output(options: RunOptions, name: str) -> RunOptions:
    """Options under which all ranks use the run folder that the first one chose.

    Args:
        options: Where to run.
        name: What runs, see :meth:`cggm.runs.folder.RunFolder.plan`.

    Raises:
        UserError: If the folder cannot be used.
    """
    import ignite.distributed as idist

    if options.resume or idist.get_world_size() == 1:
        return options
    path = RunFolder.plan(options.output, name=name).path
    return replace(options, output=Path(str(idist.broadcast(str(path)))))


def first_alone(function: Callable[[], T]) -> T:
    """What a function returns, called on the first rank of each machine before the others.

    Args:
        function: May write files that it finds when it is called again.
    """
    import ignite.distributed as idist

    with idist.one_rank_first(local=True):
        return function()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _check_gpus() -> None:
    import torch

    ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if ranks > gpus:
        raise UserError(
            f"Expected a GPU for each of the {ranks} ranks of this machine, but it has {gpus}.",
            f"Start torchrun with --nproc_per_node={gpus}, or give --device cpu.",
        )


def _is_lost(error: RuntimeError) -> bool:
    """Whether a collective call failed because another rank is gone or late."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError) or not dist.is_initialized():
        return isinstance(error, dist.DistError)
    # Gloo has no error of its own, in a backward pass least of all: ask whether the others hear.
    others = {*range(dist.get_world_size())} - {dist.get_rank()}
    return dist.get_backend() == "gloo" and not all(map(_hears, others))


def _hears(peer: int) -> bool:
    """Whether another rank is connected: to send to it fails at once where it is gone."""
    import torch
    import torch.distributed as dist

    start = time.monotonic()
    try:
        sent = dist.isend(torch.zeros(1), peer, tag=_PROBE)
        if sent is not None:
            sent.wait(timedelta(seconds=_LISTENS))
    except RuntimeError:  # nobody receives it, or the connection is broken
        return time.monotonic() - start > _LISTENS / 2
    return True
