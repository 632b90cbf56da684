"""The command line of a script: its options, and how its errors end."""

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cggm.commands import lasting_streams, spoken
from cggm.errors import MethodRefusal, UserError, is_out_of_memory, out_of_memory
from cggm.runs.config import ConfigReader, options_of, to_yaml
from cggm.runs.environment import group_of_ranks
from cggm.runs.folder import RunFolder
from cggm.runs.loop import Stopped
from cggm.runs.options import RunConfig, RunOptions, require_device
from cggm.runs.storage import (
    check_free,
    let_go_of_all,
    parse_json,
    read_json,
    read_yaml,
    write_json,
)

if TYPE_CHECKING:
    import torch

ERROR_FILE = "CGGM_ERROR_FILE"  # variable of the environment, see read_reported_error
T = TypeVar("T")
C = TypeVar("C", bound=RunConfig)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTCONN}
_BAD_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


def parse_arguments(
    schema: type[T], description: str | None, argv: Sequence[str], *, defaults: Path, methods: Path
) -> tuple[T, RunOptions]:
    """Read the command line of a training script; ``--help`` prints the options and exits.

    Later sources win: the schema's defaults, the file ``defaults`` (or the configuration of a
    resumed run), ``--config``, ``--method``, single options.

    Args:
        schema: Dataclass of the configuration, usually a :class:`cggm.runs.options.RunConfig`.
        description: What the script does and an example; the script's docstring.
        argv: The arguments without the program's name.
        defaults: YAML file of the default configuration.
        methods: Folder with one YAML file per balancing method.

    Returns:
        The configuration, and where to run.

    Raises:
        UserError: For unknown or missing keys, wrong types and unreadable files, and where the
            resumed run is still going, or has a method to be imported that ``argv`` does not name.
    """
    reader = ConfigReader(RunOptions, schema, description=description)
    options = reader.read(RunOptions, [a for a in argv if a not in ("-h", "--help")])
    options = _after_restart(options)
    configs = defaults.parent
    if options.resume:
        defaults = RunFolder.open(options.resume).config
        check_free(options.resume)
        _check_method_of_run(defaults, argv)
    reader.add_file(defaults)
    if options.config:
        reader.add_file(_config_file(configs, options.config))
    if options.method:
        files = [_method_file(methods, name) for name in options.method.split("+")]
        reader.add_methods(files)
    return reader.read(schema, argv), options


def parse_training(
    schema: type[C], description: str | None, argv: Sequence[str], configs: Path
) -> tuple[C, RunOptions]:
    """Read the command line of a training whose configurations lie in one folder.

    ``--help`` prints the options, ``--print_config`` a file for ``--config``; both exit.

    The defaults are those of ``train.yaml`` or, without ``--data``, of ``demo.yaml`` where there is
    one; the methods lie in the folder ``methods`` beside.

    Args:
        schema: Dataclass of the configuration.
        description: What the script does and an example; the script's docstring.
        argv: The arguments without the program's name.
        configs: Folder of the data set's configurations.

    Returns:
        The configuration, and where to run.

    Raises:
        UserError: As :func:`parse_arguments`.
    """
    methods = configs.parent / "methods"
    train, demo = configs / "train.yaml", configs / "demo.yaml"
    parsed = parse_arguments(schema, description, argv, defaults=train, methods=methods)
    if parsed[0].data is None and demo.exists():
        parsed = parse_arguments(schema, description, argv, defaults=demo, methods=methods)
    config, options = parsed
    if _restarts() and os.environ.get("RANK", "0") == "0":
        _say(f"started again: {options.resume or options.output} goes on from its last checkpoint")
    if options.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return parsed


def parse_options(schema: type[T], description: str | None, argv: Sequence[str]) -> T:
    """Read the command line of a script without configuration files, such as inference.

    Args:
        schema: Dataclass with one field per option; those without a default are required.
        description: What the script does and an example; the script's docstring.
        argv: The arguments without the program's name.

    Raises:
        UserError: For unknown or missing options and wrong types.
    """
    return ConfigReader(schema, description=description).read(schema, argv)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main function.

    What a user can mend is shown as one message, without a traceback: mistakes in usage or data, a
    full disk, too little memory, a path that cannot be written, an interrupt; so is where a
    training was saved before a signal ended it. Everything else is a fault of the program and
    propagates.

    A command that another program started can tell it what it said as data: see
    :func:`read_reported_error`.

    Args:
        main: Takes the arguments, returns an exit code, or nothing for 0.
        argv: The arguments without the program's name; those of the process where not given.

    Returns:
        The exit code: 0 done, 2 wrong usage, bad data, no space, memory or access, 130 interrupted,
        128 and the number of the signal that ended a training (130 Ctrl-C, 143 SIGTERM, 138
        SIGUSR1, 129 SIGHUP).

    Example:
        >>> run(lambda argv: print("hello"), [])
        hello
        0
    """
    with lasting_streams():
        try:
            return _run(main, sys.argv[1:] if argv is None else argv)
        finally:
            let_go_of_all()  # of folders whose holders are kept alive by a traceback or a cycle


def _run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        _check_text(argv)
        _check_temporary_folder(argv)
        return _with_memory(main, argv) or 0
    except UserError as error:
        _say(f"error: {error}")
        _report_error(error)
    except OSError as error:
        message = _explained(error)
        if message is None:
            raise
        _say(f"error: {message}")
    except Stopped as stop:
        _say(str(stop))
        return 128 + stop.number
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    return 2


def _check_text(argv: Sequence[str]) -> None:
    """Refuse bytes that are no text: libraries in other languages take no path with any."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"Expected arguments that are text in this locale, but got {argument!a}.",
                "Use a locale of UTF-8 (LC_ALL=C.UTF-8), or rename the file or folder.",
            ) from error


def _check_temporary_folder(argv: Sequence[str]) -> None:
    """Refuse early where libraries would fail somewhere in the middle, as in a read-only container.

    Reading of options needs none.
    """
    if {"-h", "--help"} & {*argv}:
        return
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "Expected a folder for temporary files, but in none of the usual ones (/tmp, /var/tmp, "
            "the current one) a file can be written.",
            "Set TMPDIR to a folder that can be written, such as /dev/shm.",
        ) from error


def _with_memory(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    try:
        return main(argv)
    except Exception as error:
        # What could not be read for lack of memory is no damaged file, whoever took it for one.
        lack = next(filter(is_out_of_memory, _causes(error)), None)
        if lack is None:
            raise
        short = out_of_memory(lack)
    raise short  # out here nothing holds what the traceback did


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def read_reported_error(file: Path) -> UserError | None:
    """The error that a command ended with, as it left it for the program that started it.

    Give the command an environment in which ``CGGM_ERROR_FILE`` is the path of a file that does not
    exist. Where it ends with a :class:`~cggm.errors.UserError` it writes there, as JSON, the
    ``kind`` (name of the class), ``what`` and ``fix``. Of several ranks the first one does.

    Args:
        file: That file.

    Returns:
        A :class:`~cggm.errors.MethodRefusal` where that was the kind, else a
        :class:`~cggm.errors.UserError`; ``None`` where the command wrote none.
    """
    try:
        told = parse_json(file.read_bytes())
        kind = MethodRefusal if told["kind"] == MethodRefusal.__name__ else UserError
        return kind(str(told["what"]), str(told["fix"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report_error(error: UserError) -> None:
    file = os.environ.get(ERROR_FILE)
    if file is None or os.environ.get("RANK", "0") != "0":
        return
    what = str(error).removesuffix(error.fix).rstrip()  # with the case and the file of a DataError
    with suppress(OSError):  # it was said on standard error anyway
        write_json(Path(file), {"kind": type(error).__name__, "what": what, "fix": error.fix})


def check_problems(
    good: Sized, problems: Sequence[UserError], *, strict: bool = False, needed: int = 1
) -> None:
    """End the run where it cannot, or must not, go on without the bad cases.

    Args:
        good: The cases that are left.
        problems: One error per bad case.
        strict: Whether a single bad case is too many.
        needed: How many good cases it takes.

    Raises:
        UserError: The first problem if ``strict``, or one that says that too few cases are left.
    """
    if not problems:
        return
    if strict:
        raise problems[0]
    if len(good) < needed:
        cases = "1 good case" if needed == 1 else f"{needed} good cases"
        raise UserError(
            f"Expected at least {cases}, but found {len(good) or 'none'} among "
            f"{len(good) + len(problems)}.",
            f"The first problem: {problems[0]}",
        )


def report_problems(problems: Sequence[object]) -> None:
    """Print the cases that a run went on without; nothing where there were none.

    Args:
        problems: One error or sentence per skipped case.
    """
    if not problems:
        return
    cases = "1 case was" if len(problems) == 1 else f"{len(problems)} cases were"
    _say("\n".join([f"{cases} skipped:", *(f"  {problem}" for problem in problems)]))


def choose_device(name: str | None) -> "torch.device":
    """The device of a name.

    Args:
        name: ``cpu``, ``cuda``, a GPU by its number such as ``cuda:1``, which becomes the current
            one, or ``mps``; CUDA if there is one, where ``None``.

    Raises:
        UserError: If it is not there.
    """
    import torch

    require_device(name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name or ("cuda" if gpus else "cpu"))
    if device.type == "cuda" and not gpus:
        raise UserError(
            "Expected a CUDA device, but PyTorch finds none.", "Leave --device out, or give cpu."
        )
    if device.type == "cuda" and device.index is not None:
        if device.index >= gpus:
            numbers = ", ".join(f"cuda:{number}" for number in range(gpus))
            raise UserError(f"Expected a GPU {name}, but there is none.", f"Give one of {numbers}.")
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "Expected Apple's GPU (mps), but PyTorch finds none.",
            "Leave --device out, or give cpu.",
        )
    return device


def _restarts() -> int:
    """How often torchrun started this group of ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _after_restart(options: RunOptions) -> RunOptions:
    """Where torchrun started a group of ranks again, it goes on from what it left.

    Raises:
        UserError: If the group cannot know its folder.
    """
    if not _restarts() or options.resume:
        return options
    if options.output is None:
        raise UserError(
            "The ranks were started again, but cannot tell which folder is theirs.",
            "Give --output where you give --max-restarts.",
        )
    folder = RunFolder(options.output)
    files = (folder.environment, *folder.path.glob("*/environment.json"))  # of a run, or of a group
    began = [read_json(file, missing_ok=True).get("group") for file in files]
    if group_of_ranks() not in began or not folder.config.exists():
        return options
    return replace(options, output=None, resume=options.output)


def _config_file(configs: Path, given: Path) -> Path:
    """A file, or the one of that name among those that come with the script."""
    named = configs / f"{given}.yaml"
    if given.exists() or given.suffix or len(given.parts) > 1:
        return given
    if not named.is_file():
        available = ", ".join(sorted(file.stem for file in configs.glob("*.yaml")))
        raise UserError(
            f"{given}: no such file.",
            f"Give a YAML file, or the name of one that comes along: {available}.",
        )
    return named


def _check_method_of_run(file: Path, argv: Sequence[str]) -> None:
    """Refuse a run whose method is to be imported, unless the command line names that, too.

    A run may come from anywhere, and to import a module is to run it.
    """
    content = read_yaml(file)
    group = content.get("balancer") if isinstance(content, dict) else None
    name = group.get("name") if isinstance(group, dict) else None
    told = [words for key, words, _ in options_of(argv) if key == "balancer.name"]
    if isinstance(name, str) and "." in name and [name] not in told:
        raise UserError(
            f"{file}: the run's method is {name}, code that would be imported, and a run may come "
            "from anybody.",
            f"If you know this code, say so: --balancer.name {name}",
        )


def _method_file(methods: Path, name: str) -> Path:
    available = {file.stem: file for file in sorted(methods.glob("*.yaml"))}
    if name not in available:
        raise UserError(f"Unknown method {name!r}.", f"Available: {', '.join(available)}.")
    return available[name]


def _explained(error: OSError) -> str | None:
    """What to tell the user, if anything."""
    if "AF_UNIX path too long" in str(error):  # which has no number
        folder = tempfile.gettempdir()
        return f"{folder}: too long a path for sockets in it. Set TMPDIR to a shorter one."
    path = None if error.filename is None else os.fsdecode(error.filename)
    if error.errno in _BAD_PATH and path is not None:
        used = error.errno == errno.EEXIST
        fix = "Choose another, or remove it." if used else "Check the path and its permissions."
        return f"{path}: {error.strerror}. {fix}"
    if error.errno in _GONE and path is not None:
        return (
            f"{path}: {error.strerror}. Was it moved or removed meanwhile, or is its file system "
            "gone? Put it back, then continue (a training run with --resume)."
        )
    if error.errno == errno.EIO:
        where = path or "the output folder"
        return (
            f"{where}: {error.strerror}. Earlier files and the last checkpoint are intact. "
            "Check the disk, then continue (a training run with --resume)."
        )
    if error.errno not in _NO_SPACE:
        return None
    where = path or "the output folder"
    return (
        f"{where}: {error.strerror}, so it was not written. Earlier files and the last checkpoint "
        "are intact. Free some space, then continue (a training run with --resume)."
    )


def _say(message: str) -> None:
    print(spoken(message), file=sys.stderr)
