"""What happens at the end of each epoch of a training: validate, log, save."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm.balancer import Balancer
from cggm.runs.checkpoint import Progress, Stateful, load_checkpoint, save_checkpoint
from cggm.runs.folder import RunFolder
from cggm.runs.logs import JsonLines, TensorBoardLog


class EpochEnd:
    """Validates, writes metrics and checkpoints, and restores the last one.

    The engine's output must be a mapping with the ``"loss"``.

    Args:
        run: Folder to write to.
        network: The network.
        optimizer: Its optimizer.
        balancer: The method, bound.
        validate: Gives validation metrics by name, without ``val_``.
        score: Of these metrics what selects the checkpoint, higher is better.
        every: Epochs between validations; the last epoch is always validated.
        keep_last: Recent checkpoints to keep besides the best.
        digest: Of the data, which must be the same on resume.
        plateau: Lowers the learning rate when the score, negated, no longer falls.
    """

    def __init__(
        self,
        run: RunFolder,
        network: nn.Module,
        optimizer: Optimizer,
        balancer: Balancer,
        *,
        validate: Callable[[], Mapping[str, float | None]],
        score: Callable[[Mapping[str, Any]], float],
        every: int,
        keep_last: int,
        digest: str,
        plateau: ReduceLROnPlateau | None = None,
    ) -> None:
        self.run = run
        self.network = network
        self.every = every
        self.keep_last = keep_last
        self._validate = validate
        self._score = score
        self._plateau = plateau
        self._parts: dict[str, Stateful | None] = {
            "optimizer": optimizer,
            "balancer": balancer,
            "plateau": plateau,
        }
        self._modalities = balancer.binding.names
        self._rate: Callable[[], float] = lambda: optimizer.param_groups[0]["lr"]
        self._fingerprint = {"data": digest}
        self._losses: list[Tensor] = []
        self._resumed_at: int | None = None
        self._metrics: JsonLines
        self._events: TensorBoardLog

    def restore(self) -> int:
        """Continue from the run's last checkpoint; returns the completed epochs.

        A run that ended before its first checkpoint begins anew.

        Raises:
            UserError: If the checkpoint is damaged or of another run.
        """
        progress = Progress(epoch=0, iteration=0)
        if any(self.run.checkpoints.glob("epoch-*")):
            progress = load_checkpoint(
                self.run.checkpoints, self.network, self._parts, self._fingerprint
            )
        self._resumed_at = progress.iteration
        for path in (self.run.metrics, self.run.balance):
            with JsonLines(path) as lines:
                lines.truncate_after(iteration=progress.iteration)
        return progress.epoch

    def attach(self, engine: Engine) -> None:
        """Attach to a training engine, after the balancer's handlers."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        self._metrics = JsonLines(self.run.metrics)
        self._events = TensorBoardLog(self.run.tensorboard, resumed_at=self._resumed_at)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._losses.append(output["loss"].detach())

    def _finish(self, engine: Engine) -> None:
        epoch, iteration = engine.state.epoch, engine.state.iteration
        record: dict[str, Any] = {"epoch": epoch, "iteration": iteration, "lr": self._rate()}
        record["train_loss"] = torch.stack(self._losses).mean().item()
        self._losses.clear()
        score = None
        if epoch % self.every == 0 or epoch == engine.state.max_epochs:
            metrics = self._validate()
            score = self._score(metrics)
            record |= {f"val_{name}": value for name, value in metrics.items()}
            if self._plateau is not None:
                self._plateau.step(-score)
        self._metrics.write(record)
        self._events.write({**record, **self._readings(engine)}, iteration=iteration)
        save_checkpoint(
            self.run.checkpoints,
            self.network,
            self._parts,
            Progress(epoch, iteration, score, self._fingerprint),
            keep_last=self.keep_last,
        )

    def _readings(self, engine: Engine) -> dict[str, dict[str, float]]:
        """The balancer's last readings by name and modality."""
        readings: dict[str, Tensor] = getattr(engine.state, "balance", {})
        return {
            name: dict(zip(self._modalities, values.tolist(), strict=True))
            for name, values in readings.items()
        }

    def _close(self, engine: Engine) -> None:
        self._metrics.close()
        self._events.close()
