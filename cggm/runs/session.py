"""A training, epoch by epoch: validated, logged, saved, and left where a signal asks for it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm.balancer import Balancer
from cggm.distributed import broadcast_from_first, is_first_rank, mean_over_ranks, wait_for_ranks
from cggm.handlers import BalanceRecorder
from cggm.runs.checkpoints import (
    Progress,
    Stateful,
    find_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from cggm.runs.folder import RunFolder
from cggm.runs.launch import check_alike
from cggm.runs.loop import Stopped, StopSignals
from cggm.runs.watch import Journal


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
        self._values += mean_over_ranks([loss.detach()])

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


class Saver:
    """Saves one training, restores it, and leaves it once it is saved.

    Args:
        run: Folder to write to.
        network: The network.
        parts: Everything else with a state, by name.
        flush: Writes what logs hold back, which a resumed run would not write again.
        fingerprint: What must be the same on resume.
        keep_last: Recent checkpoints to keep besides the best.
        minutes: Between checkpoints; 0 saves whenever it is asked.

    Attributes:
        progress: How far the run was when it was last saved or restored.
        signals: Those that ask for the end.
    """

    def __init__(
        self,
        run: RunFolder,
        network: nn.Module,
        parts: Mapping[str, Stateful | None],
        flush: Callable[[], None],
        *,
        fingerprint: Mapping[str, str],
        keep_last: int,
        minutes: float,
    ) -> None:
        self.progress = Progress(epoch=0, iteration=0, fingerprint=fingerprint)
        self.signals = StopSignals()
        self._run, self._network, self._parts = run, network, parts
        self._flush, self._keep_last = flush, keep_last
        self._seconds, self._saved_at = 60 * minutes, time.monotonic()

    def restore(self) -> Progress:
        """Continue from the last checkpoint; without one the run begins anew.

        Raises:
            UserError: If the checkpoint is damaged or of another run.
        """
        folder = self._run.checkpoints
        if find_checkpoints(folder):
            self.progress = load_checkpoint(
                folder, self._network, self._parts, self.progress.fingerprint
            )
            if is_first_rank():
                prune(folder, self._keep_last)  # a kill may have come between saving and this
        return self.progress

    def save(self, epoch: int, iteration: int, score: float | None = None) -> None:
        """Save, unless the last checkpoint is of the same progress.

        The first rank does, for all of them.
        """
        self._saved_at = time.monotonic()
        if (epoch, iteration) == (self.progress.epoch, self.progress.iteration):
            return
        self._flush()
        self.progress = replace(self.progress, epoch=epoch, iteration=iteration, score=score)
        if is_first_rank():
            save_checkpoint(
                self._run.checkpoints,
                self._network,
                self._parts,
                self.progress,
                keep_last=self._keep_last,
            )

    def save_if_due(self, epoch: int, iteration: int) -> None:
        """Save where the last time is long enough ago."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save(epoch, iteration)

    def leave_if_requested(self, epoch: int, iteration: int) -> None:
        """Save and end the training if a signal asked for it.

        Raises:
            Stopped: If so.
        """
        number = self.signals.requested()
        if number:
            self.save(epoch, iteration)
            wait_for_ranks()  # torchrun kills all of them soon after one has left
            raise Stopped(number, f"step {iteration}, {epoch} epochs completed", self._run.path)


class Epochs:
    """Validates, writes metrics and checkpoints, and goes on from the last one.

    A checkpoint is written at the end of each epoch and now and then within it, after steps of the
    optimizer alone, and before a validation. The engine's output must be a mapping with the
    ``"loss"``. Of several ranks all take part and the first one writes.

    Args:
        journal: Where metrics go; its folder gets the checkpoints.
        network: The network.
        optimizer: Its optimizer.
        balancer: The method, bound.
        recorder: Writes the method's readings.
        validate: Gives validation metrics by name, without ``val_``. It changes nothing, as a
            signal may end it in the middle.
        score: Of these metrics what selects the checkpoint, higher is better.
        every: Epochs between validations; the last epoch is always validated.
        max_epochs: Epochs of the whole run.
        steps: Iterations of an epoch.
        keep_last: Recent checkpoints to keep besides the best.
        save_minutes: Minutes between checkpoints within an epoch; 0 saves after every step.
        digest: Of the data, which must be the same on resume.
        parts: What else has a state, by name.
        plateau: Lowers the learning rate when the score, negated, no longer falls.
    """

    def __init__(
        self,
        journal: Journal,
        network: nn.Module,
        optimizer: Optimizer,
        balancer: Balancer,
        recorder: BalanceRecorder,
        *,
        validate: Callable[[], Mapping[str, float | None]],
        score: Callable[[Mapping[str, Any]], float],
        every: int,
        max_epochs: int,
        steps: int,
        keep_last: int,
        save_minutes: float,
        digest: str,
        parts: Mapping[str, Stateful] | None = None,
        plateau: ReduceLROnPlateau | None = None,
    ) -> None:
        self.every, self.max_epochs, self.steps = every, max_epochs, steps
        self._journal, self._recorder = journal, recorder
        self._network, self._balancer = network, balancer
        self._validate, self._score, self._plateau = validate, score, plateau
        self._losses = EpochLosses(next(network.parameters()).device)
        own: dict[str, Stateful | None] = {"optimizer": optimizer, "balancer": balancer}
        own |= {"plateau": plateau, "losses": self._losses}
        self._saver = Saver(
            journal.folder,
            network,
            {**own, **(parts or {})},
            self._flush,
            fingerprint={"data": digest, "number of batches": str(steps)},
            keep_last=keep_last,
            minutes=save_minutes,
        )
        self._rate: Callable[[], float] = lambda: optimizer.param_groups[0]["lr"]

    @property
    def done(self) -> int:
        """Completed epochs."""
        return self._saver.progress.epoch

    def restore(self) -> Progress:
        """Continue from the run's last checkpoint; returns how far it was.

        A run that ended before its first checkpoint begins anew.

        Raises:
            UserError: If the checkpoint is damaged or of another run.
        """
        progress = self._saver.restore()
        check_alike({"checkpoint": (progress.epoch, progress.iteration)})
        self._journal.cut(epoch_end=progress.epoch * self.steps, iteration=progress.iteration)
        return progress

    def attach(self, engine: Engine) -> None:
        """Attach to a training engine, after the balancer's handlers, and put it where the run is.

        Args:
            engine: The trainer, to be run by :meth:`run`.
        """
        state, progress = engine.state, self._saver.progress
        state.epoch, state.iteration = progress.epoch, progress.iteration
        # Without these two Ignite takes the run for a new one and begins at epoch 1.
        state.max_epochs, state.epoch_length = self.max_epochs, self.steps
        self._journal.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def run(self, engine: Engine, start: Callable[[], object]) -> None:
        """Train from where the run is to the end of its last epoch, if that was not reached.

        Args:
            engine: The engine that this is attached to.
            start: Runs it.

        Raises:
            Stopped: If a signal ended the training; it is saved.
        """
        state = engine.state
        if state.epoch >= self.max_epochs:
            return
        with self._journal.opened(), self._saver.signals:
            if state.iteration == (state.epoch + 1) * self.steps:  # saved before its validation
                state.epoch += 1
                self._finish(engine)
            if state.epoch < self.max_epochs:
                start()

    def keep(self, iteration: int) -> Path:
        """Save in the midst of an epoch, before a step that goes wrong; all ranks do.

        Args:
            iteration: Completed iterations; losses of later ones are forgotten.

        Returns:
            Where checkpoints are.
        """
        self._losses.keep(iteration % self.steps)
        self._saver.save(iteration // self.steps, iteration)
        wait_for_ranks()  # torchrun kills all of them soon after one has left
        return self._journal.folder.checkpoints

    def _flush(self) -> None:
        """Write what would be lost otherwise, before a checkpoint."""
        self._recorder.flush()
        self._journal.note_time()

    def _after_step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._losses.add(output["loss"])
        if self._balancer.micro_batches or engine.state.iteration % self.steps == 0:
            return  # gradients wait for their step, or the end of the epoch follows
        progress = (engine.state.epoch - 1, engine.state.iteration)
        self._saver.save_if_due(*progress)
        self._saver.leave_if_requested(*progress)

    def _finish(self, engine: Engine) -> None:
        epoch, iteration = engine.state.epoch, engine.state.iteration
        record: dict[str, Any] = {"epoch": epoch, "iteration": iteration, "lr": self._rate()}
        record["train_loss"] = self._losses.mean()
        if skipped := getattr(engine.state, "skipped_steps", 0):
            record["skipped_steps"] = skipped
        score = None
        if epoch % self.every == 0 or epoch == self.max_epochs:
            metrics = self._metrics_unless_requested(epoch, iteration)
            score = self._score(metrics)
            record |= {f"val_{name}": value for name, value in metrics.items()}
            if self._plateau is not None:
                self._plateau.step(-score)
        self._losses.keep(0)
        self._journal.write(record, self._readings(engine))
        self._saver.save(epoch, iteration, score)
        self._journal.draw()
        self._saver.leave_if_requested(epoch, iteration)

    def _metrics_unless_requested(self, epoch: int, iteration: int) -> Mapping[str, float | None]:
        """Validation metrics; a signal ends the validation and the training at once."""
        self._saver.save_if_due(epoch - 1, iteration)
        broadcast_from_first(self._network.buffers())  # statistics of BatchNorm
        metrics = self._saver.signals.unless_requested(self._validate)
        self._saver.leave_if_requested(epoch - 1, iteration)
        assert metrics is not None
        return metrics

    def _readings(self, engine: Engine) -> dict[str, dict[str, float]]:
        """The balancer's last readings by name and modality."""
        readings: dict[str, Tensor] = dict(getattr(engine.state, "balance", {}))
        if self._balancer.norms is not None:
            readings["gradient_norm"] = self._balancer.norms
        names = self._balancer.binding.names
        return {k: dict(zip(names, v.tolist(), strict=True)) for k, v in readings.items()}
