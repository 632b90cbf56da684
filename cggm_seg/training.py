"""Assembles a BraTS training: data, network, balancer and a MONAI trainer with its handlers."""

import logging
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.optim import SGD

from cggm.balancer import Balancer
from cggm.distributed import rank, world_size
from cggm.errors import UserError
from cggm.handlers import BalanceHandler, BalanceRecorder
from cggm.runs.batches import EndlessBatches, EpochSampler
from cggm.runs.epochs import Epochs
from cggm.runs.folder import RunFolder
from cggm.runs.loading import CaseLoader
from cggm.runs.nonfinite import NonFiniteGuard
from cggm.runs.progress import TrainingProgress
from cggm.runs.ranks import check_alike, share_of_batch
from cggm.runs.replicas import Replicas, replicated
from cggm.runs.schedule import WarmupCosine
from cggm_seg.balancing import factory, training_slices
from cggm_seg.cache import SliceCache
from cggm_seg.config import BratsConfig, OptimizerConfig
from cggm_seg.dataset import SliceDataset, SliceItem
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.split import Split
from cggm_seg.validation import mean_dice


class BratsTrainer(SupervisedTrainer):
    """A trainer whose ``run()`` goes on where its run folder is.

    Attributes:
        epochs: What validates, logs and saves.
    """

    epochs: Epochs

    def run(self) -> None:  # type: ignore[override]
        """Train to the end of the last epoch, see :meth:`cggm.runs.epochs.Epochs.run`."""
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
    batches = _batches(config, dataset)
    trainer = BratsTrainer(
        device=device,
        max_epochs=config.max_epochs,
        train_data_loader=_loader(config, dataset, batches),
        epoch_length=len(batches),
        network=replicated(network, sync_batchnorm=config.network.sync_batchnorm),
        optimizer=optimizer,
        loss_function=balancer.task_loss,
        prepare_batch=_prepare_batch,
        non_blocking=True,
        decollate=False,
        amp=config.amp and device.type == "cuda",
        amp_kwargs={"dtype": torch.bfloat16},
        accumulation_steps=config.optimizer.accumulation_steps,
        optim_set_to_none=True,
    )
    recorder = BalanceRecorder(balancer, run.balance, every=config.balancer.record_every)
    trainer.epochs = Epochs(
        run,
        network,
        optimizer,
        balancer,
        recorder,
        validate=partial(mean_dice, network, cache, split.validation, progress="Validating"),
        score=itemgetter("dice_mean"),
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
    TrainingProgress(optimizer).attach(trainer)
    trainer.epochs.attach(trainer)
    return trainer


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


def _batches(config: BratsConfig, dataset: SliceDataset) -> EndlessBatches:
    world = world_size()
    if len(dataset) < 2 * world:
        raise UserError(
            f"Expected at least {2 * world} training slices in an epoch, for BatchNorm, but got "
            f"{len(dataset)}.",
            "Add cases, or raise --slices.per_case.",
        )
    sampler = EpochSampler(len(dataset), seed=config.seed, rank=rank(), world=world)
    return EndlessBatches(sampler, share_of_batch(config.batch_size, least=2))


def _loader(
    config: BratsConfig, dataset: SliceDataset, batches: EndlessBatches
) -> CaseLoader[SliceItem]:
    return CaseLoader(
        dataset,
        batches,
        name=lambda position: dataset.case_ids[position // dataset.slices_per_case],
        workers=config.processes,
        pin_memory=torch.cuda.is_available(),
    )


def _schedule(config: OptimizerConfig, optimizer: SGD) -> WarmupCosine:
    return WarmupCosine(
        optimizer,
        warmup_epochs=config.warmup_epochs,
        start=config.lr_start,
        peak=config.lr_peak,
        final=config.lr_final,
    )


def _prepare_batch(
    batch: SliceItem, device: torch.device, non_blocking: bool, **_: object
) -> tuple[Tensor, Tensor]:
    image, label = batch["image"], batch["label"]
    return image.to(device, non_blocking=non_blocking), label.to(device, non_blocking=non_blocking)
