"""The parts that a BraTS training provides to a balancing method: heads, score, loss, batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from cggm.balancer import Balancer
from cggm.errors import UserError
from cggm.methods import bound_balancer
from cggm.runs import EndlessBatches, EpochSampler, warmup_cosine
from cggm.scores import Score
from cggm.trials import Course, Trials
from cggm_seg.data import SliceCache, SliceDataset, Split
from cggm_seg.evaluation import REGIONS, region_dice_counts
from cggm_seg.networks import OUTPUT_STRIDE, MultiEncoderDeepLabV3Plus, UnimodalDecoder
from cggm_seg.training.config import BratsConfig, DiceTerm, SgdConfig
from cggm_seg.training.losses import SoftDiceCELoss


def unimodal_heads(
    network: MultiEncoderDeepLabV3Plus, *, light: bool = True
) -> dict[str, UnimodalDecoder]:
    """One head per encoder of a network, in the order of its encoders.

    Args:
        network: The network whose features the heads read.
        light: Whether to use the light decoder.

    Returns:
        Heads by modality, on the device of the network.
    """
    device = next(network.parameters()).device
    return {
        name: UnimodalDecoder(
            network.decoder_channels, network.low_level_channels, network.classes, light=light
        ).to(device)
        for name in network.encoders
    }


def segmentation_balancer(
    config: BratsConfig, network: MultiEncoderDeepLabV3Plus, cache: SliceCache, split: Split
) -> Balancer:
    """The method of a configuration, bound to the network.

    Args:
        config: The configuration.
        network: The network, on its device.
        cache: Where slices are read.
        split: Methods that train copies hold out the validation cases.

    Raises:
        UserError: If the method, or a setting of it, is unknown or cannot serve.
    """
    loss = config.loss
    task_loss = SoftDiceCELoss(loss.class_weights, loss.ce_weight, dice=loss.dice)
    rates = config.optimizer
    return bound_balancer(
        config.balancer.name,
        config.balancer.settings,
        {
            "task_loss": lambda: task_loss,
            "heads": partial(unimodal_heads, network, light=config.balancer.light_heads),
            "score": lambda: head_score(loss.dice),
            "head_optimizer": lambda: sgd_factory(rates, rates.head_lr),
            "samples": lambda: len(split.training),
            "trials": lambda: _trials(config, network, cache, split, task_loss),
            "held_out": lambda: _held_out(config, network, cache, split, task_loss),
        },
        network,
    )


def head_score(dice: DiceTerm) -> Score:
    """The score of a head that goes with a Dice term of the loss.

    Args:
        dice: ``"foreground"``, the paper's, gives the mean Dice of ET, TC and WT, where an empty
            region counts 1 if it was left empty, else 0: with small lesions, whether a batch holds
            a region then moves the score more than what a head has learnt. ``"regions"`` gives the
            mean of those regions that are in the batch, ``"classes"`` that of the classes that are.

    Returns:
        Predictions and targets to counts, see :func:`cggm.scores.score_counts`.
    """
    scores: dict[DiceTerm, Score] = {
        "foreground": region_dice_counts,
        "regions": _present_region_counts,
        "classes": _present_class_counts,
    }
    return scores[dice]


def _present_region_counts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = region_dice_counts(prediction, target)
    by_class = [(target == k).count_nonzero() for k in range(prediction.shape[1])]
    sizes = [torch.stack([by_class[k] for k in region]).sum() for region in REGIONS.values()]
    return (*counts, torch.stack(sizes).float())


def _present_class_counts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classes = torch.arange(1, prediction.shape[1], device=target.device)[:, None]
    found = prediction.argmax(1).flatten() == classes  # (C - 1, pixels)
    wanted = target.flatten() == classes
    sizes = wanted.sum(1)
    return 2 * (found & wanted).sum(1).float(), (found.sum(1) + sizes).float(), sizes.float()


def sgd_factory(config: SgdConfig, lr: float) -> Callable[[Iterable[nn.Parameter]], SGD]:
    """Parameters to the optimizer of a configuration."""
    return partial(SGD, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)


def training_slices(
    config: BratsConfig, cache: SliceCache, case_ids: tuple[str, ...]
) -> SliceDataset:
    """Slices of some cases, drawn and augmented as the configuration says."""
    slices = config.slices
    return SliceDataset(
        cache,
        case_ids,
        size=slices.size,
        slices_per_case=slices.per_case,
        lesion_fraction=slices.lesion_fraction,
        regions=tuple(REGIONS.values()) if slices.focus == "regions" else (REGIONS["WT"],),
        seed=config.seed,
        augment=slices.augment,
    )


def whole_slices(config: BratsConfig, cache: SliceCache, case_ids: tuple[str, ...]) -> SliceDataset:
    """Whole slices of some cases, drawn as crops are and not augmented, to judge networks by."""
    longest = max(max(cache.read(case_id, 0)[1].shape) for case_id in case_ids)
    size = max(32, ceil(longest / OUTPUT_STRIDE) * OUTPUT_STRIDE)
    slices = replace(config.slices, size=size, augment=False)
    return training_slices(replace(config, slices=slices), cache, case_ids)


def check_complete(cache: SliceCache, split: Split, what: str) -> None:
    """Refuse cases that lack a modality, for what takes its zeros for an image.

    Args:
        cache: Tells which modalities a case has.
        split: The cases that are used.
        what: The option that needs complete cases, for the message.

    Raises:
        UserError: If a case lacks a modality that the network sees.
    """
    used = (*split.training, *split.validation)
    lacking = [case_id for case_id in used if not all(cache.present(case_id))]
    if lacking:
        found = f"Expected complete cases for {what}, but {len(lacking)} lack a modality"
        raise UserError(
            f"{found}, such as {lacking[0]}.",
            "Give --missing refuse, which leaves such cases out, or do without the option.",
        )


def training_batches(
    config: BratsConfig, network: MultiEncoderDeepLabV3Plus, cache: SliceCache, split: Split
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch on the network's device."""
    dataset = training_slices(config, cache, split.training)
    device = next(network.parameters()).device
    return _batches(1, dataset=dataset, config=config, device=device)


def _trials(
    config: BratsConfig,
    network: MultiEncoderDeepLabV3Plus,
    cache: SliceCache,
    split: Split,
    task_loss: nn.Module,
) -> Trials:
    method = f"{config.balancer.name}, which trains copies of the network"
    check_complete(cache, split, method)
    rates = config.optimizer
    batches = partial(_batches, config=config, device=next(network.parameters()).device)
    dataset = training_slices(config, cache, split.training)
    return Trials(
        network,
        task_loss,
        partial(batches, dataset=dataset),
        partial(batches, dataset=whole_slices(config, cache, split.validation)),
        sgd_factory(rates, rates.lr_peak),
        seed=config.seed,
        course=Course(
            config.max_epochs, partial(_schedule, rates, ceil(len(dataset) / config.batch_size))
        ),
        judged=partial(batches, dataset=whole_slices(config, cache, split.training)),
    )


def _held_out(
    config: BratsConfig,
    network: MultiEncoderDeepLabV3Plus,
    cache: SliceCache,
    split: Split,
    task_loss: nn.Module,
) -> Trials | None:
    """Trials whose cases have all modalities; ``None`` where no held-out case has."""
    complete = [
        tuple(c for c in ids if all(cache.present(c))) for ids in (split.training, split.validation)
    ]
    if not all(complete):
        return None
    training, validation = complete
    return _trials(config, network, cache, Split(training, validation), task_loss)


def _schedule(config: SgdConfig, length: int, optimizer: Optimizer, epochs: int) -> LambdaLR:
    """The schedule of a training of so many epochs of so many batches, for an optimizer at peak."""
    rate = partial(
        warmup_cosine,
        warmup=config.warmup_epochs * length,
        total=epochs * length,
        start=config.lr_start,
        peak=config.lr_peak,
        final=config.lr_final,
    )
    return LambdaLR(optimizer, lambda step: rate(step) / (config.lr_peak or 1.0))


def _batches(
    epoch: int, *, dataset: SliceDataset, config: BratsConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    sampler = EpochSampler(len(dataset), seed=config.seed)
    batches = EndlessBatches(sampler, config.batch_size, first_epoch=epoch)
    loader = DataLoader(dataset, batch_sampler=batches, generator=torch.Generator())
    for _, batch in zip(range(len(batches)), loader, strict=False):
        yield batch["image"].to(device), batch["label"].to(device)
