"""What happens at the end of each epoch of a BraTS training: validate, log, save."""

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer

from cggm.balancer import Balancer
from cggm.runs.checkpoint import Progress, Stateful, load_checkpoint, save_checkpoint
from cggm.runs.folder import RunFolder
from cggm.runs.logs import JsonLines, TensorBoardLog
from cggm_seg.cache import SliceCache
from cggm_seg.config import BratsConfig
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.regions import REGIONS
from cggm_seg.split import Split
from cggm_seg.validation import evaluate_cached, mean_of


class EpochEnd:
    """Validates on whole volumes, writes metrics and checkpoints, and restores the last one.

    Args:
        config: How often to validate and how many checkpoints to keep.
        run: Folder to write to.
        network: The network.
        optimizer: Its optimizer.
        balancer: The method, bound.
        cache: Where slices are read.
        split: Cases of training and validation.
    """

    def __init__(
        self,
        config: BratsConfig,
        run: RunFolder,
        network: MultiEncoderDeepLabV3Plus,
        optimizer: Optimizer,
        balancer: Balancer,
        cache: SliceCache,
        split: Split,
    ) -> None:
        self.config = config
        self.run = run
        self.network = network
        self.cache = cache
        self.split = split
        self._parts: dict[str, Stateful | None] = {"optimizer": optimizer, "balancer": balancer}
        self._rate = lambda: optimizer.param_groups[0]["lr"]
        self._fingerprint = {"data": split.digest()}
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
        if epoch % self.config.validate_every == 0 or epoch == engine.state.max_epochs:
            record |= self._validate()
        self._metrics.write(record)
        self._events.write({**record, **self._readings(engine)}, iteration=iteration)
        save_checkpoint(
            self.run.checkpoints,
            self.network,
            self._parts,
            Progress(epoch, iteration, record.get("val_dice_mean"), self._fingerprint),
            keep_last=self.config.keep_last,
        )

    def _validate(self) -> dict[str, float]:
        results = evaluate_cached(
            self.network, self.cache, self.split.validation, progress="Validating"
        )
        (rows,) = results.values()
        names = [*(f"dice_{region}" for region in REGIONS), "dice_mean"]
        return {f"val_{name}": mean_of(rows, name) for name in names}

    def _readings(self, engine: Engine) -> dict[str, dict[str, float]]:
        """The balancer's last readings by name and modality."""
        readings: dict[str, Tensor] = getattr(engine.state, "balance", {})
        return {
            name: dict(zip(self.network.modalities, values.tolist(), strict=True))
            for name, values in readings.items()
        }

    def _close(self, engine: Engine) -> None:
        self._metrics.close()
        self._events.close()
