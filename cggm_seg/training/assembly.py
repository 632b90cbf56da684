"""Assembles a BraTS training: data, network, balancer and a MONAI trainer with its handlers."""

import logging
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch.optim import SGD

from cggm.balancer import Balancer
from cggm.handlers import BalanceHandler, BalanceRecorder
from cggm.runs import (
    CaseLoader,
    Epochs,
    Journal,
    NonFiniteGuard,
    Replicas,
    RunFolder,
    TrainingProgress,
    WarmupCosine,
    check_alike,
    replicated,
    selection_score,
)
from cggm_seg.data import SliceCache, SliceItem, Split, prepare_batch, slice_batches, slice_loader
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.training.balancing import factory, training_slices
from cggm_seg.training.config import BratsConfig, OptimizerConfig
from cggm_seg.training.validation import ValidationSlice, mean_dice


class BratsTrainer(SupervisedTrainer):
    """A trainer whose ``run()`` goes on where its run folder is.

    Attributes:
        epochs: What validates, logs and saves.
    """

    epochs: Epochs

    def run(self) -> None:  # type: ignore[override]
        """Train to the end of the last epoch, see :meth:`cggm.runs.session.Epochs.run`."""
        loader: Any = self.data_loader
        with loader.naming_lost_cases():
            self.epochs.run(self, super().run)


def build_trainer(
    config: BratsConfig,
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    cache: SliceCache,
    split: Split,
    device: torch.device,
    *,
    resume: bool = False,
) -> BratsTrainer:
    """A MONAI trainer that balances, validates, logs and saves, ready to ``run()``.

    Ranks that torchrun started share each batch and the validation; the first one writes.

    Args:
        config: The configuration.
        run: Folder that it writes to, once it runs.
        network: The network, on the device.
        balancer: The method, bound to it.
        cache: Where slices are read.
        split: Cases of training and validation.
        device: Where to compute.
        resume: Whether to continue from the run's last checkpoint.

    Raises:
        UserError: If the number of slices or the checkpoint does not fit.
    """
    check_alike({"configuration": repr(config), "cases": split.digest()})
    optimizer = factory(config.optimizer, config.optimizer.lr_start)(network.parameters())
    dataset = training_slices(config, cache, split.training)
    batches = slice_batches(dataset, config.batch_size)
    loader = slice_loader(dataset, batches, config.processes)
    trainer = _engine(config, network, balancer, optimizer, loader, len(batches), device)
    recorder = BalanceRecorder(balancer, run.balance, every=config.balancer.record_every)
    picture = ValidationSlice(network, cache, split.validation[0])
    trainer.epochs = Epochs(
        Journal(run, config, picture=picture),
        network,
        optimizer,
        balancer,
        recorder,
        validate=partial(mean_dice, network, cache, split.validation, progress="Validating"),
        score=partial(selection_score, name="dice_mean"),
        every=config.validate_every,
        max_epochs=config.max_epochs,
        steps=len(batches),
        keep_last=config.keep_last,
        save_minutes=config.save_minutes,
        digest=split.digest(),
        parts={"scaler": LossScale(trainer)},
    )
    if resume:
        batches.skip(trainer.epochs.restore().iteration)
    _attach_handlers(trainer, config, network, optimizer, balancer, recorder)
    return trainer


def _engine(
    config: BratsConfig,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    optimizer: SGD,
    loader: CaseLoader[SliceItem],
    steps: int,
    device: torch.device,
) -> BratsTrainer:
    return BratsTrainer(
        device=device,
        max_epochs=config.max_epochs,
        train_data_loader=loader,
        epoch_length=steps,
        network=replicated(network, sync_batchnorm=config.network.sync_batchnorm),
        optimizer=optimizer,
        loss_function=balancer.task_loss,
        prepare_batch=prepare_batch,
        non_blocking=True,
        decollate=False,
        amp=config.amp and device.type == "cuda",
        amp_kwargs={"dtype": torch.bfloat16},
        accumulation_steps=config.optimizer.accumulation_steps,
        optim_set_to_none=True,
    )


def _attach_handlers(
    trainer: BratsTrainer,
    config: BratsConfig,
    network: MultiEncoderDeepLabV3Plus,
    optimizer: SGD,
    balancer: Balancer,
    recorder: BalanceRecorder,
) -> None:
    """Let everything follow the training, in the order in which it acts after a step."""
    trainer.logger.setLevel(logging.CRITICAL)  # Ignite repeats the error that it raises
    _schedule(config.optimizer, optimizer).attach(trainer)
    BalanceHandler(balancer, identify=itemgetter("position")).attach(trainer)
    NonFiniteGuard(
        network,
        optimizer,
        balancer,
        names=itemgetter("case"),
        save=trainer.epochs.keep,
        skip=config.skip_nonfinite,
    ).attach(trainer)
    Replicas(network, balancer, config.seed).attach(trainer)
    recorder.attach(trainer)
    TrainingProgress(optimizer, modalities=balancer.binding.names).attach(trainer)
    trainer.epochs.attach(trainer)


class LossScale:
    """The state of the gradient scaler, which MONAI's trainer makes anew in each run.

    Args:
        trainer: Has a scaler once it runs, where it computes in half precision.
    """

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] = {}
        trainer.add_event_handler(Events.STARTED, self._restore)

    def state_dict(self) -> dict[str, Any]:
        """Scale and steps since it grew; empty without a scaler."""
        scaler = self._trainer.scaler
        return self._restored if scaler is None else scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over once the trainer runs."""
        self._restored = state_dict

    def _restore(self) -> None:
        if self._restored and self._trainer.scaler is not None:
            self._trainer.scaler.load_state_dict(self._restored)


def _schedule(config: OptimizerConfig, optimizer: SGD) -> WarmupCosine:
    return WarmupCosine(
        optimizer,
        warmup_epochs=config.warmup_epochs,
        start=config.lr_start,
        peak=config.lr_peak,
        final=config.lr_final,
    )
