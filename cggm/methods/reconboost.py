"""ReconBoost: modalities learn in turn, each from what the others leave unexplained."""

from typing import Any

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.contract import check_late_fusion
from cggm.distributed import world_size
from cggm.heads import Criterion
from cggm.methods._parts import is_classification, rest_but
from cggm.passes import Step


class ReconBoost(Balancer):
    r"""ReconBoost (Hua et al., ICML 2024): boosting over modalities.

    One modality learns at a time, k, against the sum of the others' logits. With
    :math:`q = \mathrm{sg}[\mathrm{softmax}(\sum_{j \neq k} z_j)]` and the modality of the turn
    before, :math:`k'`,

    .. math::
        L_k = -\frac{1}{C} \sum_c y_c (w_1 - w_2 q_c) \log \mathrm{softmax}(z_k)_c + \alpha \,
            \mathrm{MSE}(\mathrm{softmax}(z_k), \mathrm{sg}[\mathrm{softmax}(z_{k'})])

    so that samples the others explain weigh less. A turn takes ``epochs_per_stage`` epochs, and
    after every turn all learn jointly from :math:`L(\sum_j z_j, y)` for ``rectify_epochs``; epoch
    e, from 1, belongs to :math:`k = \lfloor (e - 1) / (turn + rectify) \rfloor \bmod M`. The
    agreement term has a gradient, which the released code detaches away. In the first turn of all
    nobody learnt before, and the term is left out.

    Of the authors' runs two things are not in the equations, and not done here: modalities share
    one linear layer (``common_space``, on by default), and encoders may start from unimodal
    trainings (``--use_pretrain``). Nor is the first turn's share of the others set to 1.

    The published rectification multiplies the sum by a learnable boost rate, at first 1. Here it
    stays 1: a network does not know a rate that its training held, the heads' last layers can
    learn the same scale, and the most likely class does not depend on it.

    Published: classification, any number of modalities; one is trained jointly. Our extensions:

    - segmentation: the same per voxel, averaged over voxels;
    - regression, values ``(B,)`` or ``(B, 1)``: :math:`L(z_k, y - \mathrm{sg} \sum_{j \neq k} z_j)`
      with the task loss, without weights and agreement.

    Modalities at rest have no gradient, so that the optimizer passes them over, weight decay and
    momentum included. The released code makes a new optimizer for each turn; here the loop's own
    goes on, and a modality resumes with the momentum it had. Modalities at rest do run, in training
    mode: with dropout, and batch statistics move. DDP waits for every parameter the prediction
    depends on, so on several ranks their gradients are computed, as zeros, and dropped before the
    step; ``find_unused_parameters=True`` would not help and is not needed.

    A loop without a handler has to call ``start_epoch``. Do not use it for runs of fewer epochs
    than ``M * (epochs_per_stage + rectify_epochs)``, in which some modality never has a turn, and
    compare epochs fairly: a modality learns in few of them. A small ``w1 - w2`` leaves little to
    learn from once the others are confident.

    Args:
        task_loss: ``(prediction, target)`` to a scalar, for rectification and regression.
        epochs_per_stage: Epochs of one modality's turn; 0 is joint training throughout.
        rectify_epochs: Joint epochs after every turn.
        w1: Weight of the cross-entropy; the code takes 5 (CREMA-D), 4 (AVE, ModelNet40), 1 (MOSI).
        w2: Share of what the others explain, at most ``w1``; the code takes 1 or 0.25.
        alpha: Weight of the agreement term, not negative.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network does not add its
            modalities' predictions; in the first call, if the task is none of the above.
        RuntimeError: If no epoch was announced.
    """

    replaces_loss = True

    def __init__(
        self,
        task_loss: Criterion,
        *,
        epochs_per_stage: int = 4,
        rectify_epochs: int = 4,
        w1: float = 5.0,
        w2: float = 1.0,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(task_loss)
        if min(epochs_per_stage, rectify_epochs) < 0 or epochs_per_stage + rectify_epochs == 0:
            raise ValueError(
                "Expected `epochs_per_stage` and `rectify_epochs` not negative and not both 0, "
                f"but got {epochs_per_stage} and {rectify_epochs}."
            )
        if not (0 <= w2 <= w1 < float("inf") and 0 <= alpha < float("inf")):
            raise ValueError(
                "Expected 0 <= `w2` <= `w1` and `alpha` not negative, all finite, but got "
                f"w1={w1}, w2={w2} and alpha={alpha}."
            )
        self.epochs = (epochs_per_stage, rectify_epochs)
        self.w1, self.w2, self.alpha = w1, w2, alpha
        self._learning = torch.ones(0, 0)

    @property
    def active(self) -> int | None:
        """Index of the modality that learns in this epoch; ``None`` if all do."""
        turn, rectify = self.epochs
        count = len(self.binding.names)
        if turn == 0 or count == 1:
            return None
        if self.clock.epoch == 0:
            raise RuntimeError(
                "Expected epochs to be announced to ReconBoost, whose modalities take turns, but "
                "none was. Attach a BalanceHandler, or call `start_epoch(epoch)`."
            )
        stage, epoch = divmod(self.clock.epoch - 1, turn + rectify)
        return stage % count if epoch < turn else None

    def prepare(self, binding: Binding) -> None:
        """Refuse a network that is no sum of its modalities."""
        check_late_fusion(binding.output_layer, "ReconBoost")
        if binding.output_layer.rule != "sum":
            raise ValueError(
                "Expected the rule 'sum', because ReconBoost adds up its modalities' predictions, "
                f"but the network combines by {binding.output_layer.rule!r}. Change its rule."
            )
        self._learning = torch.eye(len(binding.names), device=binding.device)

    def loss(self, step: Step) -> Tensor:
        """Loss of the active modality, or the task loss."""
        active = self.active
        if active is None:
            self.readings = {"term": torch.ones_like(self._learning[0])}
            return step.loss
        self.readings = {"term": self._learning[active]}
        alone = [step.unimodal[name] for name in self.binding.names]
        with torch.autocast(step.prediction.device.type, enabled=False):
            total = self._residual_loss([z.float() for z in alone], active, step.target)
        # DDP waits for a gradient of every parameter that the prediction depends on
        return total + 0 * step.prediction.sum() if world_size() > 1 else total

    def edit_gradients(self) -> None:
        """Leave the optimizer no gradient, zeros included, of modalities at rest."""
        active = self.active
        if active is not None:
            rest_but(self.binding.names[active], self.binding)

    def _residual_loss(self, alone: list[Tensor], active: int, target: Tensor) -> Tensor:
        """What the active modality learns from."""
        own = alone[active]
        others = torch.stack([z.detach() for i, z in enumerate(alone) if i != active]).sum(0)
        if not _has_classes(own, target):
            return self.task_loss(own, target - others)
        fit = self._fit(_rows(own), _rows(others), target.flatten())
        if self.alpha == 0 or self.clock.epoch <= self.epochs[0]:
            return fit
        before = alone[active - 1].detach()
        return fit + self.alpha * nn.functional.mse_loss(own.softmax(1), before.softmax(1))

    def _fit(self, own: Tensor, others: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over C, weighted by what the others leave; negative labels are ignored."""
        known = target >= 0
        chosen = target.clamp_min(0).long()[:, None]
        weight = self.w1 - self.w2 * others.softmax(1).gather(1, chosen)[:, 0]
        losses = -weight * own.log_softmax(1).gather(1, chosen)[:, 0]
        return (losses * known).sum() / known.sum().clamp_min(1) / own.shape[1]


def _rows(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).flatten(0, -2)


def _has_classes(prediction: Tensor, target: Any) -> bool:  # noqa: ANN401
    """Whether the target is class indices; if not, it is values.

    Raises:
        ValueError: If it is neither.
    """
    shape = target.shape if isinstance(target, Tensor) else None
    values = shape == prediction.shape and prediction.shape[1:] in ((), (1,))
    if values and target.is_floating_point():
        return False
    flat = target.flatten() if isinstance(target, Tensor) else target
    if prediction.ndim > 1 and is_classification(_rows(prediction), flat):
        return True
    raise ValueError(
        "Expected logits (B, C, ...) with class indices (B, ...), or values (B,) or (B, 1) with "
        f"targets of floats alike, but got {tuple(prediction.shape)} and "
        f"{type(target).__name__ if shape is None else tuple(shape)}, of which ReconBoost cannot "
        "tell what is left to learn. Choose another method."
    )
