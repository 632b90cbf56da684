"""A session of training: any Ignite engine, validated, logged, saved, and resumed exactly."""

import logging
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from cggm.balancer import Balancer
from cggm.distributed import broadcast_from_first, is_first_rank, wait_for_ranks, world_size
from cggm.errors import UserError
from cggm.handlers import BalanceHandler, BalanceRecorder, loss_of
from cggm.runs.checkpoints import (
    RunProgress,
    Saver,
    find_checkpoints,
    load_network_weights,
)
from cggm.runs.config import write_config
from cggm.runs.folder import RunFolder
from cggm.runs.launch import check_ranks_agree
from cggm.runs.loop import (
    CaseLoader,
    DeferredLooks,
    NonFiniteGuard,
    Replicas,
    WarmupCosine,
    begin_after,
)
from cggm.runs.metrics import selection_score
from cggm.runs.options import SessionOptions, allowed_changes
from cggm.runs.parts import EpochLosses, TrainingData, TrainingParts, Validation, scaler_of
from cggm.runs.storage import hold, let_go
from cggm.runs.watch import Journal, TrainingProgress, method_record

_GPU_LOOKS = 16  # steps between looks for numbers that are not finite


class Session:
    """Runs a training in its folder, from the start or from where it was interrupted.

    It attaches everything that a training needs to an engine that exists, in the one order in which
    it works: schedule, balancing, guard against numbers that are not finite, ranks, record of the
    method, progress, then validation, logs and checkpoints. A checkpoint is written at the end of
    each epoch and now and then within it, after steps of the optimizer alone, and before a
    validation. Of several ranks all take part and the first one writes.

    Building a session restores the last checkpoint of the folder, if there is one, and writes
    nothing else.

    Args:
        trainer: The engine: MONAI's ``SupervisedTrainer``, Ignite's ``create_supervised_trainer``
            or one with your own step. Its output is the loss, or a mapping with the ``"loss"``, or
            a sequence that begins with one of these.
        parts: What it changes.
        data: What it learns from.
        run: Its folder, made where there is none.
        options: How long it runs, and how often it validates, saves and records.
        balance: Attaches the balancing method; a training goes without where not given. A method
            that is not bound is bound to the network.
        validation: What is measured between epochs; nothing where not given.

    Attributes:
        guard: What keeps numbers that are not finite away from the weights. An engine that clips
            gradients calls its ``check`` before it does.

    Raises:
        UserError: If the checkpoint is damaged or of another run, or another process trains there.

    Example:
        >>> session = Session(
        ...     trainer,
        ...     TrainingParts(network, optimizer),
        ...     TrainingData(loader),
        ...     RunFolder(Path("runs/mine")),
        ...     SessionOptions(max_epochs=20),
        ...     balance=BalanceHandler(balancer, network),
        ... )  # doctest: +SKIP
        >>> session.run()  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Engine,
        parts: TrainingParts,
        data: TrainingData,
        run: RunFolder,
        options: SessionOptions,
        *,
        balance: BalanceHandler | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.trainer, self.folder = trainer, run
        self._parts, self._data, self._options, self._validation = parts, data, options, validation
        self._steps = len(data.loader)
        self._balancer = _bound(balance, parts.network)
        self._recorder = _recorder(self._balancer, run, options)
        picture = None if validation is None else validation.picture
        self._journal = Journal(run, options, picture=picture, simulated=data.simulated)
        self._losses = EpochLosses(next(parts.network.parameters()).device)
        self._saver = self._build_saver()
        self.guard = NonFiniteGuard(
            parts.network,
            parts.optimizer,
            self._balancer,
            names=data.names,
            save=self._save_before,
            skip=options.skip_nonfinite,
            deferred=self._deferred(options.check_every),
        )
        self._prepared = False
        self._began_before = run.config.exists()
        self._changes: dict[str, tuple[object, object]] = {}
        if self._began_before:
            self._hold()
            self._changes = self._changed_options()
        self._restore()
        self._attach(balance)

    @property
    def done(self) -> int:
        """Completed epochs."""
        return self._saver.progress.epoch

    def prepare_folder(self) -> None:
        """Make the folder with ``config.yaml`` and ``environment.json``; :meth:`run` does it else.

        Only the first rank writes, and only once.

        Raises:
            UserError: If another training began there since this session was built.
        """
        if is_first_rank() and not self._prepared:
            self.folder.make()
            self._hold()
            self.folder.sweep()
            if self.folder.config.exists() and not self._began_before:
                raise UserError(
                    f"{self.folder.path}: another training began there meanwhile.",
                    f"Continue it with --resume {self.folder.path}, or give another --output.",
                )
            write_config(self._options, self.folder.config, also=self._method)
            iteration = self._saver.progress.iteration
            self.folder.write_environment(resumed_at=iteration, changed=self._changes)
        self._prepared = True

    def run(self) -> None:
        """Train to the end of the last epoch, if that was not reached.

        Raises:
            Stopped: If a signal ended the training; it is saved.
            UserError: If numbers are not finite, or a loader lost a case.
        """
        self.prepare_folder()
        state = self.trainer.state
        if state.epoch >= self._options.max_epochs:
            return
        with ExitStack() as stack:
            stack.callback(self.guard.detach)
            stack.enter_context(_silent(self.trainer))
            stack.enter_context(self._journal.opened())
            stack.enter_context(self._saver.signals)
            if isinstance(self._loader, CaseLoader):
                stack.enter_context(self._loader.naming_lost_cases())
            if state.iteration == (state.epoch + 1) * self._steps:  # saved before its validation
                state.epoch += 1
                self._finish_epoch(self.trainer)
            if state.epoch < self._options.max_epochs:
                self._start()

    def load_best(self) -> RunProgress:
        """Give network and method the state of the best checkpoint; returns how far it was."""
        method = {} if self._balancer is None else {"balancer": self._balancer}
        return load_network_weights(self.folder.checkpoints, self._parts.network, method)

    def _hold(self) -> None:
        """Keep other processes out of the folder for as long as this session lives."""
        if is_first_rank():
            number = hold(self.folder.path, "a training")
            weakref.finalize(self, let_go, self.folder.path, number)

    @property
    def _method(self) -> dict[str, Any]:
        """The method as a configuration of ours says it, where these options do not."""
        if self._balancer is None or hasattr(self._options, "balancer"):
            return {}
        return method_record(self._balancer)

    def _build_saver(self) -> Saver:
        parts, options = self._parts, self._options
        on_plateau = isinstance(parts.schedule, ReduceLROnPlateau)
        stepping = isinstance(parts.schedule, LRScheduler) and not on_plateau
        states: dict[str, Any] = {
            "optimizer": parts.optimizer,
            "balancer": self._balancer,
            "plateau": parts.schedule if on_plateau else None,
            "schedule": parts.schedule if stepping else None,
            "losses": self._losses,
            "scaler": scaler_of(self.trainer),
        }
        return Saver(
            self.folder,
            parts.network,
            {**states, **parts.others},
            self._flush,
            fingerprint=self._fingerprint,
            keep_last=options.keep_last,
            minutes=options.save_minutes,
        )

    @property
    def _fingerprint(self) -> dict[str, str]:
        """What must be the same on resume."""
        data, content = self._data, {}
        if data.content:
            content = {"content of the samples": data.content}
        return {"data": data.digest, "number of batches": str(self._steps), **content}

    def _changed_options(self) -> dict[str, tuple[object, object]]:
        """What the run is given anew; nothing where nothing was computed yet."""
        computed = find_checkpoints(self.folder.checkpoints)
        return allowed_changes(self._options, self.folder.config) if computed else {}

    def _restore(self) -> None:
        progress = self._saver.restore()
        check_ranks_agree({"checkpoint": (progress.epoch, progress.iteration)})
        if not self.folder.is_new():
            self._journal.cut(epoch_end=progress.epoch * self._steps, iteration=progress.iteration)
        seed = self._options.seed
        self._loader = begin_after(progress.iteration, self._data.loader, seed=seed)
        state = self.trainer.state
        state.epoch, state.iteration = progress.epoch, progress.iteration
        # Without these two Ignite takes the run for a new one and begins at epoch 1.
        state.max_epochs, state.epoch_length = self._options.max_epochs, self._steps

    def _attach(self, balance: BalanceHandler | None) -> None:
        """Let everything follow the training, in the order in which it acts after a step."""
        trainer, parts = self.trainer, self._parts
        if isinstance(parts.schedule, WarmupCosine):
            parts.schedule.attach(trainer)
        if balance is not None:
            balance.attach(trainer)
        self.guard.attach(trainer)
        Replicas(parts.network, self._balancer, self._options.seed).attach(trainer)
        if self._recorder is not None:
            self._recorder.attach(trainer)
        TrainingProgress(parts.optimizer, modalities=self._modalities).attach(trainer)
        self._journal.attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _start(self) -> None:
        trainer: Any = self.trainer
        if hasattr(trainer, "data_loader"):  # MONAI's are given theirs when they are built
            trainer.data_loader = self._loader
            trainer.run()
        else:
            trainer.run(self._loader)

    @property
    def _modalities(self) -> list[str]:
        return [] if self._balancer is None else self._balancer.binding.names

    def _save_before(self, iteration: int) -> Path:
        """Save the state before a step that goes wrong, of which later losses are forgotten.

        All ranks do.
        """
        self._losses.keep(iteration % self._steps)
        self._saver.save(iteration // self._steps, iteration)
        wait_for_ranks()  # torchrun kills all of them soon after one has left
        return self.folder.checkpoints

    def _deferred(self, every: int | None) -> DeferredLooks | None:
        """Looks now and then, where a look makes the host wait and the run ends at a bad step."""
        if every is None:
            on_gpu = next(self._parts.network.parameters()).device.type == "cuda"
            every = _GPU_LOOKS if on_gpu else 1
        scaled = scaler_of(self.trainer) is not None and getattr(self.trainer, "amp", True)
        if every == 1 or scaled or self._options.skip_nonfinite or world_size() > 1:
            return None

        def save_held() -> tuple[int, Path]:
            return self._saver.save_held(), self.folder.checkpoints

        return DeferredLooks(every, lambda i: self._saver.hold(i // self._steps, i), save_held)

    def _flush(self) -> None:
        """Look at what is about to be saved, and write what would be lost otherwise."""
        self.guard.settle()
        if self._recorder is not None:
            self._recorder.flush()
        self._journal.note_time()

    def _after_step(self, engine: Engine) -> None:
        self._losses.add(loss_of(engine.state.output))
        if self.guard.waiting or engine.state.iteration % self._steps == 0:
            return  # gradients wait for their step, or the end of the epoch follows
        progress = (engine.state.epoch - 1, engine.state.iteration)
        self._saver.save_if_due(*progress)
        self._saver.leave_if_requested(*progress)

    def _finish_epoch(self, engine: Engine) -> None:
        epoch, iteration = engine.state.epoch, engine.state.iteration
        self._saver.check_weights(iteration)
        rate = self._parts.optimizer.param_groups[0]["lr"]
        record: dict[str, Any] = {"epoch": epoch, "iteration": iteration, "lr": rate}
        record["train_loss"] = self._losses.mean()
        if skipped := getattr(engine.state, "skipped_steps", 0):
            record["skipped_steps"] = skipped
        score, metrics = self._validate(epoch, iteration)
        # Sentences on what a person should look at are no metrics.
        record |= {k if k == "warnings" else f"val_{k}": v for k, v in metrics.items()}
        self._tell(epoch, metrics.get("warnings", ()))
        self._step_schedule(metrics)
        self._losses.keep(0)
        self._journal.write(record, self._readings(engine))
        self._saver.save(epoch, iteration, score)
        self._journal.draw()
        self._saver.leave_if_requested(epoch, iteration)

    def _tell(self, epoch: int, warnings: Sequence[str]) -> None:
        if is_first_rank():
            for sentence in warnings:
                tqdm.write(f"warning, epoch {epoch}: {sentence}", file=sys.stderr)  # above the bar

    def _validate(self, epoch: int, iteration: int) -> tuple[float | None, Mapping[str, Any]]:
        """Score and metrics, where it is time; a signal ends validation and training at once."""
        validation, options = self._validation, self._options
        due = epoch % options.validate_every == 0 or epoch == options.max_epochs
        if validation is None or not due:
            return None, {}
        self._saver.save_if_due(epoch - 1, iteration)
        broadcast_from_first(self._parts.network.buffers())  # statistics of BatchNorm
        metrics = self._saver.signals.unless_requested(validation.metrics)
        self._saver.leave_if_requested(epoch - 1, iteration)
        assert metrics is not None
        return selection_score(metrics, validation.selects), metrics

    def _step_schedule(self, metrics: Mapping[str, Any]) -> None:
        schedule, validation = self._parts.schedule, self._validation
        if isinstance(schedule, ReduceLROnPlateau):
            if validation is not None and metrics:
                name = validation.schedules or validation.selects
                schedule.step(-selection_score(metrics, name))
        elif isinstance(schedule, LRScheduler):
            schedule.step()

    def _readings(self, engine: Engine) -> dict[str, dict[str, float]]:
        """The method's last readings by name and modality."""
        readings: dict[str, Tensor] = dict(getattr(engine.state, "balance", {}))
        if self._balancer is not None and self._balancer.norms is not None:
            readings["gradient_norm"] = self._balancer.norms
        names = self._modalities
        return {k: dict(zip(names, v.tolist(), strict=True)) for k, v in readings.items()}


def _bound(balance: BalanceHandler | None, network: nn.Module) -> Balancer | None:
    if balance is None:
        return None
    if not balance.balancer.bound:
        balance.balancer.bind(network)
    return balance.balancer


def _recorder(
    balancer: Balancer | None, run: RunFolder, options: SessionOptions
) -> BalanceRecorder | None:
    if balancer is None:
        return None
    return BalanceRecorder(balancer, run.balance, every=options.record_every)


@contextmanager
def _silent(engine: Engine) -> Iterator[None]:
    """Ignite logs every error that it raises as well."""
    level = engine.logger.level
    engine.logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        engine.logger.setLevel(level)
