"""The parts that a session of training is given, and the small states that it keeps of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cggm.distributed import mean_over_ranks
from cggm.runs.checkpoints import Stateful
from cggm.runs.loop import Loader, WarmupCosine
from cggm.runs.watch import Picture

Schedule = WarmupCosine | ReduceLROnPlateau | LRScheduler


@dataclass(frozen=True)
class TrainingParts:
    """What a training changes; a checkpoint holds the state of all of it.

    Args:
        network: The network itself, without the wrapper of several ranks.
        optimizer: Its optimizer.
        schedule: What sets the learning rate. PyTorch's ``ReduceLROnPlateau`` is told the negated
            score of each validation, its other schedulers step after each epoch.
        others: Whatever else has a state, by name, such as a GradScaler that you made.
    """

    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None = None
    others: Mapping[str, Stateful] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from.

    Args:
        loader: Batches of an epoch, with a length. Loaders over ``EndlessBatches`` begin where
            they are told; any other one is replayed, see
            :class:`cggm.runs.loop.sampling.ReplayedLoader`.
        digest: Of the samples, which must be the same when the run is resumed.
        names: A batch to the identifiers of its samples, for messages.
        content: Digest of the content of their files, which must be the same, too; empty where
            ``digest`` covers it.
        simulated: Whether samples are simulated, which every picture and page then says.
    """

    loader: Loader
    digest: str = ""
    names: Callable[[Any], Sequence[str]] = lambda batch: ()
    simulated: bool = False
    content: str = ""


@dataclass(frozen=True)
class Validation:
    """What is measured between epochs. It changes nothing, as a signal may end it in the middle.

    Args:
        metrics: Gives the metrics by name, without ``val_``, and under ``warnings`` sentences, if
            any, to be told and logged.
        selects: Which of them selects the checkpoint and drives the schedule; it must be registered
            with :func:`cggm.runs.metrics.register_metrics`.
        picture: Draws what the network makes of a fixed part of the validation data, if anything.
        schedules: Which of them drives the schedule, registered as well, if another one does.
    """

    metrics: Callable[[], Mapping[str, Any]]
    selects: str
    picture: Callable[[], Picture] | None = None
    schedules: str | None = None


class EpochLosses:
    """Losses of an epoch's steps so far, on the device, whose mean a resumed run needs as well.

    Args:
        device: Of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._values: list[Tensor] = []
        self._device = device

    def add(self, loss: Tensor) -> None:
        """Take the loss of a step, the mean of those of all ranks."""
        self._values += mean_over_ranks([loss.to(self._device)])

    def mean(self) -> float:
        """The mean of those that are finite, NaN where none is."""
        values = torch.stack(self._values)
        return values[values.isfinite()].mean().item()

    def keep(self, count: int) -> None:
        """Forget all but the first ones."""
        del self._values[count:]

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"values": torch.stack(self._values) if self._values else torch.zeros(0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self._values = [*state_dict["values"].to(self._device)]


class LossScale:
    """The state of the gradient scaler, which MONAI's trainer makes anew in each run.

    Args:
        trainer: Has a ``scaler`` once it runs, where it computes in half precision.
    """

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401
        self._trainer = trainer
        self._restored: dict[str, Any] = {}
        trainer.add_event_handler(Events.STARTED, self._restore)

    def state_dict(self) -> dict[str, Any]:
        """Scale and steps since it grew; empty without a scaler."""
        scaler = getattr(self._trainer, "scaler", None)  # MONAI's has none before it runs
        return self._restored if scaler is None else scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over once the trainer runs."""
        self._restored = state_dict

    def _restore(self) -> None:
        if self._restored and self._trainer.scaler is not None:
            self._trainer.scaler.load_state_dict(self._restored)


def scaler_of(trainer: Any) -> Stateful | None:  # noqa: ANN401
    """The scaler that a trainer makes itself."""
    if hasattr(trainer, "amp"):  # MONAI's trainers
        return LossScale(trainer)
    scaler: Stateful | None = getattr(trainer.state, "scaler", None)
    return scaler
