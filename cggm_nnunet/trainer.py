"""Trainers of nnU-Net with a balancing method in place of the loss, one class for each method."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from cggm.errors import UserError
from cggm_nnunet.balancing import Balancing, bound_balancing, states_of
from cggm_nnunet.judging import PooledDice
from cggm_nnunet.network import ModalityUNet, build_network, constant_channels
from cggm_nnunet.settings import channel_names, read_settings

_IN_PLANS = "cggm"  # of the settings that prediction needs, too


class nnUNetTrainerJoint(nnUNetTrainer):
    """nnU-Net's trainer with an encoder for each channel, and the base of the balanced ones.

    All else is nnU-Net's: plans, augmentation, loss, optimizer, schedule, clipping, validation and
    prediction. Settings are those of :class:`cggm_nnunet.settings.TrainerSettings`.

    Args:
        plans: As nnU-Net gives them.
        configuration: Likewise, such as ``3d_fullres``; a cascade's second stage is refused.
        fold: Likewise.
        dataset_json: Likewise.
        device: Likewise.

    Attributes:
        method: The class of ``cggm.methods`` that balances, or several joined by ``+`` to a chain.
        defaults: Settings of the method where the file of settings gives none, of a chain by the
            names of its methods.

    Raises:
        UserError: If the configuration belongs to a cascade, a setting is wrong, or there is one
            modality alone.
    """

    method: ClassVar[str] = "Balancer"
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.names = channel_names(dataset_json)
        if self.is_cascaded:
            raise UserError(
                f"Expected a configuration of its own, but {configuration} sees the labels of "
                f"{self.configuration_manager.previous_stage_name}, which are no modality.",
                "Train 2d, 3d_fullres or 3d_lowres.",
            )
        if len(self.names) < 2:
            raise UserError(
                f"Expected several modalities to balance, but the data set has {self.names}.",
                "Train it with nnUNetTrainer.",
            )
        base = self.preprocessed_dataset_folder_base
        self.settings = read_settings(Path(base) if base else None, self.defaults)
        self.plans_manager.plans[_IN_PLANS] = {"width": self.settings.width}
        told = {
            "num_epochs": self.settings.epochs,
            "num_iterations_per_epoch": self.settings.iterations,
            "num_val_iterations_per_epoch": self.settings.validation_iterations,
            "save_every": self.settings.save_every,
        }
        for name, value in told.items():
            if value is not None:
                setattr(self, name, value)
        self.balancing: Balancing | None = None

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,  # noqa: ANN401
        configuration_manager: Any,  # noqa: ANN401
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> ModalityUNet:
        """The network, in training and in prediction; see nnU-Net's own."""
        return build_network(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
            width=plans_manager.plans.get(_IN_PLANS, {}).get("width", 1.0),
        )

    def initialize(self) -> None:
        """Build network, optimizer and loss as nnU-Net does, and bind the method to them."""
        super().initialize()
        labels, whole = self.label_manager, self._build_loss()
        self.balancing = self.loss = bound_balancing(
            self.method,
            self.settings,
            self.network,
            (whole, _single(whole)),
            PooledDice(regions=labels.has_regions, ignored=labels.ignore_label),
            names=self.names,
            folder=Path(self.output_folder),
        )

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss with a Dice that is not compiled, since it is differentiated twice."""
        loss: Any = super()._build_loss()
        single = getattr(loss, "loss", loss)
        single.dc = getattr(single.dc, "_orig_mod", single.dc)
        return loss

    @staticmethod
    @functools.wraps(nnUNetTrainer.get_training_transforms)
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:  # noqa: ANN401
        """nnU-Net's augmentation, after which a constant channel is constant still."""
        return KeepConstant(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    def on_train_epoch_start(self) -> None:
        """Tell the method that an epoch begins."""
        super().on_train_epoch_start()
        self._balancing.balancer.start_epoch(self.current_epoch + 1)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, recorded."""
        self._balancing.before_step(batch["data"])
        result: dict[str, Any] = super().train_step(batch)
        self._balancing.after_step(self.current_epoch + 1, torch.as_tensor(result["loss"]))
        return result

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Tell the method that an epoch ends, and log what it measured."""
        super().on_train_epoch_end(train_outputs)
        self._balancing.balancer.end_epoch(self.current_epoch + 1)
        for name, values in self._balancing.end_epoch().items():
            self.logger.local_logger.my_fantastic_logging.setdefault(f"balance_{name}", [])
            self.logger.log(f"balance_{name}", values, self.current_epoch)
            told = ", ".join(f"{n} {v:.3f}" for n, v in zip(self.names, values, strict=True))
            self.print_to_log_file(f"balance_{name}: {told}")

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, with the state of the method in a file beside it."""
        file, epoch = Path(filename), self.current_epoch + 1
        writes = self.local_rank == 0 and not self.disable_checkpointing
        if writes:
            self._balancing.save(file, epoch)
        super().save_checkpoint(filename)
        for trained, state in states_of(file).items() if writes else ():
            if trained != epoch:
                state.unlink()

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Go on from a checkpoint; the method's state is needed while there is something left."""
        super().load_checkpoint(filename_or_checkpoint)
        file = Path(filename_or_checkpoint)
        if self.current_epoch < self.num_epochs or self.current_epoch in states_of(file):
            self._balancing.restore(file, self.current_epoch)

    def on_train_end(self) -> None:
        """End as nnU-Net does, which deletes the latest checkpoint once there is a final one."""
        super().on_train_end()
        latest = Path(self.output_folder) / "checkpoint_latest.pth"
        for state in states_of(latest).values() if self.local_rank == 0 else ():
            state.unlink()

    @property
    def _balancing(self) -> Balancing:
        assert self.balancing is not None
        return self.balancing


class nnUNetTrainerCGGM(nnUNetTrainerJoint):
    """CGGM: heads judge each modality, and scale its encoder's gradient."""

    method: ClassVar[str] = "CGGM"


class nnUNetTrainerMRD(nnUNetTrainerJoint):
    """Modality dropout: samples lose what encoders return, at random; needs no head."""

    method: ClassVar[str] = "ModalityDropout"


class nnUNetTrainerUnimodalLosses(nnUNetTrainerJoint):
    """Joint training plus the losses of a head for each modality."""

    method: ClassVar[str] = "UnimodalLosses"


class nnUNetTrainerMRDUnimodalLosses(nnUNetTrainerJoint):
    """Modality dropout of all subsets alike, and the losses of a head for each modality.

    For cases that lack modalities: the dropout lets the decoder do without any of them, the heads'
    losses teach each encoder what it can tell alone.
    """

    method: ClassVar[str] = "ModalityDropout+UnimodalLosses"
    # which draws all subsets alike; `subsets` would say so, too, and make `p` ineffective
    defaults: ClassVar[Mapping[str, Any]] = {"ModalityDropout": {"p": 0.5}}


class KeepConstant(BasicTransform):
    """An augmentation after which channels that were constant are zero, without added noise.

    Args:
        transforms: The augmentation.
    """

    def __init__(self, transforms: BasicTransform) -> None:
        super().__init__()
        self.transforms = transforms

    def __call__(self, **data_dict: Any) -> dict[str, Any]:  # noqa: ANN401
        """Augment one sample.

        Args:
            data_dict: ``image``, shape ``(M, *S)``, and what else nnU-Net has.
        """
        constant = constant_channels(data_dict["image"][None])[0]
        result: dict[str, Any] = self.transforms(**data_dict)
        image: Tensor = result["image"]
        image[constant] = 0.0
        return result


def _single(loss: nn.Module) -> nn.Module:
    """nnU-Net's loss of one prediction, on a rank's own samples: ranks may lack a modality."""
    single: Any = copy.deepcopy(getattr(loss, "loss", loss))
    single.dc.ddp = False
    return single
