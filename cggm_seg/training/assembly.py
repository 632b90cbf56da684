"""The assembly of a BraTS training: a MONAI trainer of network, method and data in a session."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import CommonKeys
from torch.optim import SGD

from cggm.balancer import Balancer
from cggm.errors import UserError
from cggm.handlers import BalanceHandler
from cggm.runs import (
    CaseLoader,
    RunFolder,
    Session,
    TrainingData,
    TrainingParts,
    Validation,
    WarmupCosine,
    check_ranks_agree,
    replicated,
)
from cggm_seg.data import (
    Cohort,
    SliceItem,
    modality_masks,
    prepare_batch,
    slice_batches,
    slice_loader,
)
from cggm_seg.inference import computes_bf16
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.training.balancing import sgd_factory, training_slices
from cggm_seg.training.config import BratsConfig, SgdConfig
from cggm_seg.training.validation import ValidationSlice, validation_metrics


def segmentation_session(
    config: BratsConfig,
    run: RunFolder,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    cohort: Cohort,
    device: torch.device,
) -> Session:
    """A MONAI trainer that balances, validates, logs and saves, ready to ``run()``.

    Ranks that torchrun started share each batch and the validation; the first one writes.

    Args:
        config: The configuration.
        run: Folder that it writes to, once it runs; a run in it goes on from its last checkpoint.
        network: The network, on the device.
        balancer: The method, bound to it.
        cohort: Cases of training and validation, and where their slices are read.
        device: Where to compute.

    Raises:
        UserError: If the number of slices or the checkpoint does not fit.
    """
    cache, split = cohort.cache, cohort.split
    content = _digest_of(cohort)
    shared = {"configuration": repr(config), "cases": split.digest(), "content of cases": content}
    check_ranks_agree(shared)
    optimizer = sgd_factory(config.optimizer, config.optimizer.lr_start)(network.parameters())
    dataset = training_slices(config, cache, split.training)
    loader = slice_loader(dataset, slice_batches(dataset, config.batch_size), config.processes)
    masks = partial(modality_masks, modalities=cache.modalities)
    present = masks if cohort.lacking else None  # without need the device waits for no mask
    return Session(
        _engine(config, network, balancer, optimizer, loader, device),
        TrainingParts(network, optimizer, _schedule(config.optimizer, optimizer)),
        TrainingData(loader, split.digest(), itemgetter("case"), cohort.simulated, content),
        run,
        config,
        balance=BalanceHandler(balancer, identify=itemgetter("position"), present=present),
        validation=Validation(
            partial(validation_metrics, network, cache, split.validation, progress="Validating"),
            "dice_mean",
            ValidationSlice(network, cache, split.validation[0]),
        ),
    )


def _digest_of(cohort: Cohort) -> str:
    """One of the voxels of all cases."""
    return hashlib.sha256(json.dumps(cohort.contents, sort_keys=True).encode()).hexdigest()


def _engine(
    config: BratsConfig,
    network: MultiEncoderDeepLabV3Plus,
    balancer: Balancer,
    optimizer: SGD,
    loader: CaseLoader[SliceItem],
    device: torch.device,
) -> SupervisedTrainer:
    half = _in_bf16(config, device)
    return SupervisedTrainer(
        device=device,
        max_epochs=config.max_epochs,
        train_data_loader=loader,
        epoch_length=len(loader),
        network=replicated(network, sync_batchnorm=config.network.sync_batchnorm),
        optimizer=optimizer,
        loss_function=balancer.task_loss,
        prepare_batch=prepare_batch,
        non_blocking=True,
        decollate=False,
        iteration_update=_iterate_in_bf16 if half else None,
        accumulation_steps=config.optimizer.accumulation_steps,
        optim_set_to_none=True,
    )


def _in_bf16(config: BratsConfig, device: torch.device) -> bool:
    """Whether to train in bfloat16.

    Raises:
        UserError: If that is asked of a processor without instructions for it.
    """
    if device.type != "cpu":
        return bool(config.amp) and device.type == "cuda"
    if config.amp == "cpu" and not computes_bf16(device):
        raise UserError(
            "--amp cpu: this processor has no instructions for bfloat16, and would be slower.",
            "Leave it out.",
        )
    return config.amp == "cpu"


def _iterate_in_bf16(engine: Any, batch: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """MONAI's iteration in bfloat16, on any device and without a loss scale.

    MONAI's own names CUDA, and has a GradScaler, which bfloat16 has no need of and whose checks
    make the host wait for the device in each step.
    """
    told = (engine.state.device, engine.non_blocking)
    inputs, targets = engine.prepare_batch(batch, *told, **engine.to_kwargs)
    output: dict[str, Any] = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
    engine.state.output = output
    steps, length = engine.accumulation_steps, engine.state.epoch_length
    position = (engine.state.iteration - 1) % length + 1  # within the epoch
    engine.network.train()
    if (position - 1) % steps == 0:
        engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        output[CommonKeys.PRED] = engine.inferer(inputs, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        output[CommonKeys.LOSS] = engine.loss_function(output[CommonKeys.PRED], targets).mean()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
    (output[CommonKeys.LOSS] / steps).backward()
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    if position % steps == 0 or position == length:
        engine.optimizer.step()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return output


def _schedule(config: SgdConfig, optimizer: SGD) -> WarmupCosine:
    return WarmupCosine(
        optimizer,
        warmup_epochs=config.warmup_epochs,
        start=config.lr_start,
        peak=config.lr_peak,
        final=config.lr_final,
    )
