"""Assembles a BraTS training: data, network, balancer and a MONAI trainer with its handlers."""

import logging
from functools import partial
from operator import itemgetter

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from cggm.balancer import Balancer
from cggm.errors import UserError
from cggm.handlers import BalanceHandler, BalanceRecorder
from cggm.runs.batches import EndlessBatches, EpochSampler
from cggm.runs.epochs import EpochEnd
from cggm.runs.folder import RunFolder
from cggm.runs.progress import TrainingProgress
from cggm.runs.schedule import WarmupCosine
from cggm_seg.balancing import factory, training_slices
from cggm_seg.cache import SliceCache
from cggm_seg.config import BratsConfig, OptimizerConfig
from cggm_seg.dataset import SliceItem
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.split import Split
from cggm_seg.validation import mean_dice


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
) -> SupervisedTrainer:
    """A MONAI trainer that balances, validates, logs and saves, ready to ``run()``.

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
    optimizer = factory(config.optimizer, config.optimizer.lr_start)(network.parameters())
    end = EpochEnd(
        run,
        network,
        optimizer,
        balancer,
        validate=partial(mean_dice, network, cache, split.validation, progress="Validating"),
        score=itemgetter("dice_mean"),
        every=config.validate_every,
        keep_last=config.keep_last,
        digest=split.digest(),
    )
    done = end.restore() if resume else 0
    loader = _loader(config, cache, split, first_epoch=done + 1)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=config.max_epochs,
        train_data_loader=loader,
        epoch_length=len(loader.batch_sampler),  # type: ignore[arg-type]
        network=network,
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
    trainer.logger.setLevel(logging.CRITICAL)  # Ignite repeats the error that it raises
    trainer.state.epoch = done
    trainer.state.iteration = done * len(loader.batch_sampler)  # type: ignore[arg-type]
    _schedule(config.optimizer, optimizer).attach(trainer)
    BalanceHandler(balancer, identify=itemgetter("position")).attach(trainer)
    BalanceRecorder(balancer, run.balance, every=config.balancer.record_every).attach(trainer)
    TrainingProgress(optimizer).attach(trainer)
    end.attach(trainer)
    return trainer


def _loader(
    config: BratsConfig, cache: SliceCache, split: Split, first_epoch: int
) -> DataLoader[SliceItem]:
    dataset = training_slices(config, cache, split.training)
    if len(dataset) < 2:
        raise UserError(
            "Expected at least 2 training slices in an epoch, for BatchNorm, but got 1.",
            "Add cases, or raise --slices.per_case.",
        )
    sampler = EpochSampler(len(dataset), seed=config.seed)
    batches = EndlessBatches(sampler, config.batch_size, first_epoch=first_epoch)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.processes,
        pin_memory=torch.cuda.is_available(),
        # Without its own generator a loader draws from the one of dropout, once per start.
        generator=torch.Generator(),
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
