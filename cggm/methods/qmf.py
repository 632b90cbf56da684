"""QMF: confidences that rank samples as the history of their losses does."""

from typing import Any

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.contract import check_late_fusion
from cggm.distributed import sum_over_ranks
from cggm.heads import Criterion
from cggm.late_fusion import energy
from cggm.methods._parts import is_classification
from cggm.passes import Step


class QMF(Balancer):
    r"""Quality-aware multimodal fusion (Zhang et al., ICML 2023).

    Late fusion by energy weights modality m of sample i by its confidence
    :math:`\omega_{mi} = \tfrac{1}{10} \log \sum_c \exp z_{mic}`. That helps only where confidence
    falls as the loss rises, so the order is asked for: with the mean loss :math:`\bar\ell_{mi}` of
    a sample over its past visits, scaled over the training data to :math:`\kappa_{mi} \in [0, 1]`,

    .. math::
        L = L(z, y) + \gamma \sum_m L(z_m, y) + \lambda \sum_m R_m, \qquad
        z = \sum_m \mathrm{sg}[\omega_m] z_m

        R_m = \mathrm{mean}_{(i, j)} \max(0,\;
            \mathrm{sign}(\kappa_{mi} - \kappa_{mj}) (\omega_{mi} - \omega_{mj})
            + |\kappa_{mi} - \kappa_{mj}|)

    A pair is a sample and its neighbor in the batch. This is the paper's sign of the margin, which
    the released code turns around. Three readings of ours: the history is a mean, where the code
    sums, so that a sample visited more often does not look harder; it holds the steps before this
    one; and pairs of which a sample has no history yet ask for nothing, which leaves the rank term
    out of the first epoch. Equal histories ask for nothing as well.

    Published: two modalities, classification; the equations are the same for any number. Our
    extension to segmentation: one confidence per voxel in the fusion, its mean over a sample's
    voxels in the rank term, and the mean cross-entropy of the voxels as the sample's loss; under
    random crops a sample's history mixes its crops. Regression is refused: the energy of a value
    says nothing.

    History and window hold :math:`4 (M + 1) N` bytes each (N samples), the history in the state;
    ranks exchange the window, so many bytes, when the optimizer steps.

    Do not use it where samples are never seen again, where labels are noise (a wrong label has a
    high loss, and confidence learns to drop), or for a batch of one. Background makes up most of
    the confidence and of the history in segmentation.

    Args:
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every modality.
        samples: Number of samples in the training data; ``identify`` has to be told positions below
            it.
        unimodal: Weight of the modalities' own losses (:math:`\gamma`), not negative; the paper
            takes 1.
        lam: Weight of the rank terms (:math:`\lambda`), not negative; the paper takes 1 for text
            and images, 0.1 for color and depth. With 0 no history is kept; with both 0 this is the
            joint training of the same network.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network does not fuse by
            energy; in the first call, if the task has no classes.
        RuntimeError: If ``identify`` was not called before the criterion.
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self, task_loss: Criterion, samples: int, *, unimodal: float = 1.0, lam: float = 1.0
    ) -> None:
        super().__init__(task_loss)
        if samples < 1:
            raise ValueError(f"Expected `samples` >= 1, but got {samples}.")
        if not (0 <= unimodal < float("inf") and 0 <= lam < float("inf")):
            raise ValueError(
                "Expected `unimodal` and `lam` not negative and finite, but got "
                f"{unimodal} and {lam}."
            )
        self.unimodal, self.lam = unimodal, lam
        self.register_buffer("sums", torch.zeros(0, samples, dtype=torch.float32))
        self.register_buffer("counts", torch.zeros(samples, dtype=torch.float32))
        self._samples: Tensor | None = None

    def prepare(self, binding: Binding) -> None:
        """Refuse another fusion; make room for the history."""
        check_late_fusion(binding.output_layer, "QMF")
        if binding.output_layer.rule != "energy":
            raise ValueError(
                "Expected the rule 'energy', because QMF trains the confidences that weight the "
                f"modalities, but the network combines by {binding.output_layer.rule!r}. "
                "Change its rule."
            )
        if len(self.sums) != len(binding.names):
            self.sums = self.sums.new_zeros(len(binding.names), len(self.counts))

    def identify(self, samples: Tensor) -> None:
        """Note the batch's positions in the training data."""
        self._samples = samples

    def loss(self, step: Step) -> Tensor:
        """Task loss, the modalities' own losses and the rank terms."""
        _check_classes(step)
        self.readings = {}
        total, alone = step.loss, [step.unimodal[name] for name in self.binding.names]
        if self.unimodal:
            losses = torch.stack([self.task_loss(z, step.target) for z in alone])
            self.readings["head_loss"] = losses.detach()
            total = total + self.unimodal * losses.sum()
        if self.lam:
            positions = self._positions(len(step.prediction), step.prediction.device)
            with torch.autocast(step.prediction.device.type, enabled=False):
                ranks = self._rank([z.float() for z in alone], positions)
                self._note([z.detach().float() for z in alone], step.target, positions)
            self.readings["rank"] = ranks.detach()
            total = total + self.lam * ranks.sum()
        return total

    def commit(self) -> None:
        """Add the losses of the window, from all ranks, to the history."""
        if "losses" not in self.window:
            return
        (losses,) = sum_over_ranks([self.window["losses"]])
        self.sums += losses[:-1]
        self.counts += losses[-1]

    def _positions(self, size: int, device: torch.device) -> Tensor:
        positions, self._samples = self._samples, None
        if positions is None or positions.shape != (size,):
            found = "none" if positions is None else f"shape {tuple(positions.shape)}"
            raise RuntimeError(
                f"Expected the positions of the batch's {size} samples in the training data before "
                f"the criterion, because QMF remembers each sample's losses, but got {found}. "
                "Attach a BalanceHandler with `identify=`, or call `identify(samples)`."
            )
        return positions.to(device, torch.int64, non_blocking=True)

    def _rank(self, alone: list[Tensor], positions: Tensor) -> Tensor:
        """Rank term of each modality, ``(M,)``."""
        confidence = energy(torch.stack(alone)).flatten(2).mean(2)
        visited = self.counts > 0
        history = _scaled(self.sums / self.counts.clamp_min(1), visited)
        self.readings["confidence"] = confidence.detach().mean(1)
        known = visited[positions]
        gap = _to_neighbor(history[:, positions]) * (known & known.roll(1))
        return (gap.sign() * _to_neighbor(confidence) + gap.abs()).relu().mean(1)

    def _note(self, alone: list[Tensor], target: Tensor, positions: Tensor) -> None:
        """Add each sample's losses by modality, and its visit, to the window, ``(M + 1, N)``."""
        rows = [_sample_losses(z, target) for z in alone]
        if "losses" not in self.window:
            self.window.add("losses", self.sums.new_zeros(len(alone) + 1, len(self.counts)))
        seen = torch.stack([*rows, torch.ones_like(rows[0])])
        self.window["losses"].index_add_(1, positions, seen)


def _to_neighbor(values: Tensor) -> Tensor:
    return values - values.roll(1, -1)


def _scaled(means: Tensor, visited: Tensor) -> Tensor:
    """Means ``(M, N)`` from 0, the smallest visited, to 1, the largest; 0 if all are equal."""
    low = means.masked_fill(~visited, float("inf")).amin(1, keepdim=True)
    width = means.masked_fill(~visited, -float("inf")).amax(1, keepdim=True) - low
    return torch.where(visited & (width > 0), (means - low) / width, 0.0)


def _rows(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).flatten(0, -2)


def _sample_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each sample's predictions, ``(B,)``."""
    losses = nn.functional.cross_entropy(_rows(logits), target.flatten().long(), reduction="none")
    return losses.reshape(len(logits), -1).mean(1)


def _check_classes(step: Step) -> None:
    prediction, target = step.prediction, step.target
    indices: Any = target.flatten() if isinstance(target, Tensor) else target
    if prediction.ndim < 2 or not is_classification(_rows(prediction), indices):
        found = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            "Expected logits (B, C, ...) and class indices (B, ...), because the confidence of QMF "
            f"is an energy of class logits, but got {tuple(prediction.shape)} and {found}. "
            "Choose another method for regression."
        )
