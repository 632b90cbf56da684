"""Options that every training has, whatever its task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cggm.errors import UserError
from cggm.runs.config import changed_values

DEVICES = "cpu|cuda|cuda:N|mps"


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Refuse an option that is out of range.

    Args:
        condition: Whether it is in range.
        name: The option, such as ``optimizer.lr``.
        expected: What was expected, such as ``of at least 0``.
        value: What was given.

    Raises:
        UserError: Unless ``condition`` holds.
    """
    if not condition:
        raise UserError(f"Expected {name} {expected}, but got {value}.", f"Correct --{name}.")


def require_names(name: str, value: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an option that names what is not there, nothing, or the same twice.

    Args:
        name: The option, such as ``modalities``.
        value: What was given.
        known: What can be named.

    Raises:
        UserError: Unless every name is known and given once.
    """
    fits = bool(value) and len(set(value)) == len(value) and set(value) <= set(known)
    require(fits, name, f"to name some of {', '.join(known)}, each once", ", ".join(value))


def require_device(name: str | None) -> None:
    """Refuse what names no device; whether it is there is seen when it is needed.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``mps``; anything goes where ``None``.

    Raises:
        UserError: For any other name.
    """
    fits = name is None or re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) is not None
    require(fits, "device", "to be cpu, cuda, cuda:0 and so on, or mps", repr(name))


@dataclass(frozen=True)
class RunOptions:
    """Where to run and what to start from.

    Args:
        output: Folder of the run; runs/<name>-<date>-<time> where not given.
        config: Configuration laid over the defaults: a file, or the name of one that comes along,
            such as demo.
        method: Balancing method, laid over both.
        resume: Run to continue from its last checkpoint, its configuration in the defaults' place.
        print_config: Whether to print the configuration that all this comes to, and to end.
    """

    output: Path | None = field(default=None, metadata={"metavar": "RUN"})
    config: Path | None = field(default=None, metadata={"metavar": "YAML|NAME"})
    method: str | None = field(default=None, metadata={"metavar": "NAME"})
    resume: Path | None = field(default=None, metadata={"metavar": "RUN"})
    print_config: bool = False

    def __post_init__(self) -> None:
        if self.output and self.resume:
            raise UserError(
                "Expected --output or --resume, but got both.", "A resumed run keeps its folder."
            )


@dataclass(frozen=True)
class BalancerConfig:
    """The balancing method.

    Args:
        name: A class of cggm.methods.
        settings: Its keyword arguments.
        record_every: Iterations between lines of balance.jsonl.
    """

    name: str = "CGGM"
    settings: dict[str, Any] = field(default_factory=dict)
    record_every: int = 1

    def __post_init__(self) -> None:
        every = self.record_every
        require(every >= 1, "balancer.record_every", "of at least 1", every)


def describe_method(name: str, settings: Mapping[str, Any]) -> str:
    """A method with its settings, for people; CGGM without both of its halves is joint training.

    Args:
        name: A class of cggm.methods.
        settings: Its keyword arguments.
    """
    if name == "CGGM" and settings.get("rho", 0) is settings.get("direction", 0) is None:
        return "joint training (heads report)"
    return f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a ``Session`` is told, whatever is trained.

    Attributes:
        task: Name of what is trained, which a pipeline's configuration sets. It is the first line
            of ``config.yaml``, and no option.
        may_change: Options that a resumed run may be given anew, because the steps of a training
            do not depend on them.

    Args:
        max_epochs: Passes over the training data.
        seed: Seed of everything random.
        validate_every: Epochs between validations; the last epoch is always validated.
        keep_last: Recent checkpoints to keep besides the best.
        save_minutes: Minutes between checkpoints within an epoch; 0 saves after every step.
        skip_nonfinite: Whether a step whose loss or gradients are not finite is left out; otherwise
            it ends the run.
        check_every: Steps between looks for numbers that are not finite, which make the host wait
            for a GPU; 16 there and 1 on a processor where not given. More than 1 holds a copy of
            weights and optimizer, takes back the steps since then, and is for one process without
            skip_nonfinite and float16.
        curves: Whether curves of the training are drawn, now and then and in the end.
        mlflow: Folder, or URI of a server, where MLflow keeps the metrics too; needs its package.
    """

    task: ClassVar[str] = "custom"
    may_change: ClassVar[frozenset[str]] = frozenset(
        {"max_epochs", "keep_last", "save_minutes", "skip_nonfinite"}
        | {"check_every", "curves", "mlflow"}
    )
    max_epochs: int = field(metadata={"metavar": "N"})
    seed: int = field(default=0, metadata={"metavar": "N"})
    validate_every: int = 1
    keep_last: int = 2
    save_minutes: float = field(default=10.0, metadata={"metavar": "X"})
    skip_nonfinite: bool = False
    check_every: int | None = field(default=None, metadata={"metavar": "N"})
    curves: bool = True
    mlflow: str | None = field(default=None, metadata={"metavar": "DIR|URI"})

    @property
    def record_every(self) -> int:
        """Iterations between lines of ``balance.jsonl``."""
        return 1

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "Expected max_epochs of at least 1 and a seed from 0 to 2**32 - 1, "
                f"but got {self.max_epochs} and {self.seed}.",
                "Correct --max_epochs or --seed.",
            )
        for name in ("validate_every", "keep_last"):
            require(getattr(self, name) >= 1, name, "of at least 1", getattr(self, name))
        every = self.check_every
        require(every is None or every >= 1, "check_every", "of at least 1", every)
        require(self.save_minutes >= 0, "save_minutes", "of at least 0", self.save_minutes)


def allowed_changes(options: SessionOptions, earlier: Path) -> dict[str, tuple[object, object]]:
    """What a resumed run is given anew, as far as it may change.

    Args:
        options: Of the run now.
        earlier: Its ``config.yaml``.

    Returns:
        Option to its earlier and its present value.

    Raises:
        UserError: If results depend on one of the changes.
    """
    changes = changed_values(options, earlier)
    fixed = {key: values for key, values in changes.items() if key not in options.may_change}
    if fixed:
        differing = "; ".join(f"--{key} {new} (it has {old})" for key, (old, new) in fixed.items())
        raise UserError(
            f"{earlier.parent}: a run keeps what its results depend on, but got {differing}.",
            f"Resume without, or start a new run with --config {earlier} and another --output.",
        )
    return changes


@dataclass(frozen=True, kw_only=True)
class RunConfig(SessionOptions):
    """What every training script is told; the base of each pipeline's configuration.

    Args:
        data: Folder of the data; the demo data where not given.
        modalities: Modalities to train on; all of them where not given.
        gradients: Training batches whose last-layer gradients are kept in the end, see
            cggm.runs.gradients; needs heads.
        device: Where to compute, a GPU by its number as cuda:1; CUDA if there is one, where not
            given.
        report: Whether a report is written in the end, with what it needs of predictions.
        balancer: The balancing method.
    """

    may_change: ClassVar[frozenset[str]] = SessionOptions.may_change | {
        *("data", "device", "gradients", "report", "balancer.record_every")
    }
    data: Path | None = field(default=None, metadata={"metavar": "DIR"})
    modalities: tuple[str, ...] | None = field(default=None, metadata={"metavar": "NAMES"})
    gradients: int = field(default=0, metadata={"metavar": "N"})
    device: str | None = field(default=None, metadata={"metavar": DEVICES})
    report: bool = True
    balancer: BalancerConfig = field(default_factory=BalancerConfig)

    @property
    def record_every(self) -> int:
        """Iterations between lines of ``balance.jsonl``."""
        return self.balancer.record_every

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gradients >= 0, "gradients", "of at least 0", self.gradients)
        require_device(self.device)
