"""The configuration of a BraTS training; every field is an option of ``brats_train.py``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cggm.runs import BalancerConfig, RunConfig, require, require_names
from cggm_seg.data import MODALITIES

if TYPE_CHECKING:
    from cggm_seg.networks import MultiEncoderDeepLabV3Plus

DiceTerm = Literal["regions", "classes", "foreground"]
Focus = Literal["regions", "lesion"]


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network.

    Args:
        encoder_name: Encoder of each modality, any of smp at output stride 16.
        fusion: What is fused: features, by a decoder, or the predictions of a decoder for each
            modality, by this rule, as UnimodalEnsemble, QMF, ReconBoost and MLA need it.
        decoder_channels: Channels of the decoder and of the output layer's input.
        low_level_channels: Channels of each modality's stride-4 skip.
        atrous_rates: Dilations of the ASPP.
        aspp_dropout: Dropout probability after the ASPP.
        dense: Whether ASPP and decoder are the authors' dense ones, with multigrid in a ResNet.
        encoder_weights: State dict loaded into every encoder.
        sync_batchnorm: Whether BatchNorm takes its statistics over all ranks; on GPUs alone.
    """

    encoder_name: str = "resnet101"
    fusion: Literal["features", "average", "sum", "energy", "entropy"] = "features"
    decoder_channels: int = 256
    low_level_channels: int = 48
    atrous_rates: tuple[int, int, int] = (2, 4, 6)
    aspp_dropout: float = 0.5
    dense: bool = False
    encoder_weights: Path | None = None
    sync_batchnorm: bool = True

    def __post_init__(self) -> None:
        for name in ("decoder_channels", "low_level_channels"):
            value = getattr(self, name)
            require(value >= 1, f"network.{name}", "to be at least 1", value)
        rates, dropout = self.atrous_rates, self.aspp_dropout
        require(min(rates) >= 1, "network.atrous_rates", "to be at least 1", rates)
        require(0 <= dropout < 1, "network.aspp_dropout", "from 0 to below 1", dropout)

    def build(
        self, modalities: Sequence[str] = MODALITIES, *, pretrained: bool = True
    ) -> "MultiEncoderDeepLabV3Plus":
        """The network that the configuration describes.

        Args:
            modalities: What the network sees, in the order of its channels.
            pretrained: Whether to load ``encoder_weights``; needless where a checkpoint follows.

        Raises:
            UserError: If the encoder or its weights cannot be used.
        """
        from cggm_seg.networks import MultiEncoderDeepLabV3Plus  # slow: --help needs no network

        return MultiEncoderDeepLabV3Plus(
            modalities,
            fusion=self.fusion,
            encoder_name=self.encoder_name,
            decoder_channels=self.decoder_channels,
            low_level_channels=self.low_level_channels,
            atrous_rates=self.atrous_rates,
            aspp_dropout=self.aspp_dropout,
            dense=self.dense,
            encoder_weights=self.encoder_weights if pretrained else None,
        )


@dataclass(frozen=True)
class SliceConfig:
    """The slices a network is trained on.

    Args:
        size: Height and width of a crop in voxels, a multiple of 16.
        per_case: Slices of each case in an epoch.
        lesion_fraction: Share of slices that show a lesion.
        focus: What slices with a lesion are drawn for: WT, TC and ET in equal shares, so that small
            regions are seen often enough, or any lesion alike.
        augment: Whether crops are augmented.
    """

    size: int = 160
    per_case: int = 1
    lesion_fraction: float = 0.9
    focus: Focus = "lesion"
    augment: bool = True

    def __post_init__(self) -> None:
        fits = self.size >= 32 and self.size % 16 == 0
        require(fits, "slices.size", "to be a multiple of 16 from 32 on", self.size)
        require(self.per_case >= 1, "slices.per_case", "to be at least 1", self.per_case)
        share = self.lesion_fraction
        require(0 <= share <= 1, "slices.lesion_fraction", "from 0 to 1", share)


@dataclass(frozen=True)
class LossConfig:
    """The task loss, soft Dice plus weighted cross-entropy.

    Args:
        dice: What the Dice term is the mean of: WT, TC and ET, each foreground class by itself, or
            all foreground at once, as in the paper, where large regions outweigh small ones. The
            score of the heads follows it.
        class_weights: Cross-entropy weights of background, NCR, ED and ET.
        ce_weight: Weight of the cross-entropy.
    """

    # The defaults of `dice` and of `slices.focus` are those of runs from before there was a choice,
    # whose config.yaml names neither: they resume as they began.
    dice: DiceTerm = "foreground"
    class_weights: tuple[float, float, float, float] = (0.2, 0.3, 0.25, 0.25)
    ce_weight: float = 1.0

    def __post_init__(self) -> None:
        weights, factor = self.class_weights, self.ce_weight
        require(min(weights) > 0, "loss.class_weights", "to be positive", weights)
        require(factor >= 0, "loss.ce_weight", "of at least 0", factor)


@dataclass(frozen=True)
class SgdConfig:
    """SGD with linear warm-up and cosine decay.

    Args:
        lr_start: Learning rate of the first step.
        lr_peak: Learning rate after the warm-up.
        lr_final: Learning rate of the last step.
        warmup_epochs: Length of the warm-up.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        head_lr: Constant learning rate of the heads, which share momentum and weight decay.
        accumulation_steps: Batches per optimizer step.
    """

    lr_start: float = 4e-4
    lr_peak: float = 1e-2
    lr_final: float = 1e-3
    warmup_epochs: int = 10
    momentum: float = 0.9
    weight_decay: float = 3e-4
    head_lr: float = 6e-3
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("lr_start", "lr_peak", "lr_final", "warmup_epochs", "weight_decay", "head_lr"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name}", "of at least 0", value)
        momentum, steps = self.momentum, self.accumulation_steps
        require(0 <= momentum < 1, "optimizer.momentum", "from 0 to below 1", momentum)
        require(steps >= 1, "optimizer.accumulation_steps", "of at least 1", steps)


@dataclass(frozen=True)
class BratsBalancerConfig(BalancerConfig):
    """The balancing method, with the heads that it may use.

    Args:
        light_heads: Whether heads are light decoders or full DeepLabv3+ ones.
    """

    light_heads: bool = True


@dataclass(frozen=True, kw_only=True)
class BratsConfig(RunConfig):
    """A BraTS training.

    Args:
        batch_size: Slices per batch, shared by all ranks.
        workers: Processes that load slices, at most one per core; as many build the cache.
        amp: Whether a GPU computes in bfloat16; with cpu a processor, too, which has to have
            instructions for it.
        strict: Whether a bad case ends the run; otherwise it is left out and listed.
        cache: Folder of the slice cache; <data>/.slices where not given.
        manifest: What brats_verify recorded of the data, a file or the folder given to its
            --output; <data>/.verified where not given.
        missing: Whether cases that lack modalities are left out, or trained on with what they have.
        labels: Label values of the segmentations: brats2021, brats2023, brats-ped, brats2013,
            brats2024, or pairs such as 1=NCR,2=ED,4=ET; told by names and contents where not given.
        patients: Table (CSV) with the columns case and patient, none of whom is in training and
            validation; by default the names of the cases without their time points.
        folds: Number of folds of a cross-validation, all of which are trained without --fold.
        fold: Number of the fold that is held out, from 1 to --folds.
        validation_fraction: Share of the cases held out for validation, without folds.
        validate_every: Epochs between validations on whole volumes.
        subsets: Whether all subsets of modalities are evaluated at the end.
        network: The segmentation network.
        slices: The slices a network is trained on.
        loss: The task loss.
        optimizer: SGD and its schedule.
        balancer: The balancing method.
    """

    task: ClassVar[str] = "brats"
    may_change: ClassVar[frozenset[str]] = RunConfig.may_change | {
        *("workers", "cache", "manifest", "strict", "subsets", "network.encoder_weights")
    }
    batch_size: int = 64
    workers: int = 2
    amp: bool | Literal["cpu"] = field(default=True, metadata={"metavar": "true|false|cpu"})
    strict: bool = False
    cache: Path | None = None
    manifest: Path | None = field(default=None, metadata={"metavar": "PATH"})
    missing: Literal["refuse", "allow"] = "refuse"
    labels: str | None = field(default=None, metadata={"metavar": "SCHEME"})
    patients: Path | None = field(default=None, metadata={"metavar": "CSV"})
    folds: int | None = field(default=None, metadata={"metavar": "K"})
    fold: int | None = field(default=None, metadata={"metavar": "I"})
    validation_fraction: float = 0.2
    validate_every: int = 5
    subsets: bool = True
    network: NetworkConfig = field(default_factory=NetworkConfig)
    slices: SliceConfig = field(default_factory=SliceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: SgdConfig = field(default_factory=SgdConfig)
    balancer: BratsBalancerConfig = field(default_factory=BratsBalancerConfig)

    @property
    def processes(self) -> int:
        """``workers``, but no more than this process may use cores."""
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
        return min(self.workers, len(affinity(0)) if affinity else os.cpu_count() or 1)

    @property
    def used(self) -> tuple[str, ...]:
        """The modalities that the network sees, in the order of its channels."""
        return tuple(m for m in MODALITIES if m in (self.modalities or MODALITIES))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modalities is not None:
            require_names("modalities", self.modalities, MODALITIES)
        size, share = self.batch_size, self.validation_fraction
        require(size >= 2, "batch_size", "of at least 2, for BatchNorm", size)
        require(0 < share < 1, "validation_fraction", "between 0 and 1", share)
        if self.labels is not None:
            from cggm_seg.data import label_scheme

            label_scheme(self.labels)  # refuses what is none before anything is read
        if self.folds is not None:
            require(self.folds >= 2, "folds", "of at least 2", self.folds)
        if self.fold is not None:
            known = range(1, (self.folds or 0) + 1)
            require(self.fold in known, "fold", "from 1 to --folds", self.fold)
        require(self.workers >= 0, "workers", "of at least 0", self.workers)
