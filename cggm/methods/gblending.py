"""Gradient blending: losses of all branches, weighted by how well they generalize."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker
from cggm.trials import TrialLosses, Trials

FUSED = "fused"


class GradientBlending(Balancer):
    r"""Gradient blending (Wang, Tran & Feiszli, CVPR 2020).

    The losses of the M heads and of the fused prediction are blended. A weight is what a branch
    gains in generalization over the square of what it overfits, measured on copies of the network
    that train each branch alone for n epochs. With losses :math:`L^T` on training and
    :math:`L^V` on held-out data before (0) and after (n):

    .. math:: \Delta G_k = L^V_k(0) - L^V_k(n), \quad
              \Delta O_k = (L^V_k - L^T_k)(n) - (L^V_k - L^T_k)(0)

    .. math:: w_k = \frac{1}{Z} \frac{\max(\Delta G_k, 0)}{\max(\Delta O_k^2, \epsilon)}, \quad
              L = \sum_{k=1}^{M+1} w_k L_k, \quad \sum_k w_k = 1

    Offline, the weights are measured once, from the network as it is before its first epoch.
    Online, they are measured again every ``every`` epochs, from the network as it is then. All
    losses are means over samples in eval mode. Published for classification; nothing in it needs
    classes. Ours: the limits at 0 and :math:`\epsilon`, equal weights where no branch improves
    (the published form divides by zero and turns negative), no weight for one that diverges, and
    heads that learn as in every method here: from detached features, by an optimizer of their own,
    whose step does not depend on the weights; the published ones learn from the blended loss.
    The branches of all modalities train in one copy, as they share no parameter; with an optimizer
    that couples parameters, such as one that clips the norm of them all, they are not quite alone.

    Held-out data are what ``trials`` holds out: a part of the training split or the validation
    split, which then is no longer unseen; never the test split. An estimate takes about
    ``2 * epochs`` epochs of training and three evaluations, offline once, online for every
    ``every`` epochs.

    Do not use it where ``epochs`` is too short for losses to move by more than their noise: the
    square in the denominator makes a weight of whatever overfits least by chance. The fused branch
    alone trains fusion and output layer, and does so at :math:`w_{M+1}` times the learning rate
    under SGD. A loop of one's own has to call ``start_epoch``.

    Args:
        heads: Modality name to head, see :class:`cggm.CGGM`.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`; reported, without effect on training.
        trials: Trains the copies; unused with ``weights``.
        weights: Fixed weights by modality and ``"fused"``, which are divided by their sum; 0 where
            left out. ``{"fused": 1.0}`` is joint training.
        mode: ``"offline"`` or ``"online"``.
        epochs: Epochs n of an estimate.
        every: Epochs from one estimate to the next, online.
        floor: Smallest squared overfitting :math:`\epsilon`, in squared units of the loss.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range, or ``trials`` and ``weights`` are missing.
        RuntimeError: In the first call, if no weights were measured.
    """

    replaces_loss = True
    trains_through_heads = True
    serves_absence = True
    heads: Heads
    scores: ScoreTracker
    weights: Tensor
    estimated: Tensor

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        trials: Trials | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        mode: str = "offline",
        epochs: int = 10,
        every: int = 10,
        floor: float = 1e-4,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        if mode not in ("offline", "online") or min(epochs, every) < 1 or floor <= 0:
            raise ValueError(
                "Expected `mode` 'offline' or 'online', `epochs` and `every` of at least 1 and "
                f"`floor` positive, but got {mode!r}, {epochs}, {every} and {floor}."
            )
        if trials is None and weights is None:
            raise ValueError("Expected `trials` to measure weights by, or `weights`, but got none.")
        self.heads = Heads(heads, head_optimizer)
        self.score, self.scores = score, ScoreTracker(len(heads))
        self.mode, self.epochs, self.every, self.floor = mode, epochs, every, floor
        self.trials = trials if weights is None else None
        fixed = _fixed(weights or {FUSED: 1.0}, [*heads, FUSED])
        self.joint = weights is not None and not any(fixed[:-1])
        self.register_buffer("weights", torch.tensor(fixed))
        # the super-epoch of the last estimate, -1 before the first
        self.register_buffer("estimated", torch.tensor(-1))

    def start_epoch(self, epoch: int) -> None:
        """Measure the weights where a super-epoch begins; told twice, it is measured once."""
        super().start_epoch(epoch)
        super_epoch = (epoch - 1) // self.every if self.mode == "online" else 0
        if self.trials is None or super_epoch == int(self.estimated):
            return
        weights = self._estimate(self.trials)
        self.weights.copy_(weights)
        self.estimated.fill_(super_epoch)

    def loss(self, step: Step) -> Tensor:
        """Blend of the heads' losses and the task loss."""
        if self.calls == 1 and self.trials is not None and int(self.estimated) < 0:
            raise RuntimeError(
                "Expected weights to be measured before training, but no epoch was started. "
                "Attach a BalanceHandler, call `start_epoch(epoch)`, or give `weights`."
            )
        heads = self.judge(step, self.score)
        self.readings = {
            "score": self.scores.scores(self.window),
            "head_loss": heads.losses,
            "term": self.weights[:-1].clone(),
        }
        if self.joint:
            return step.loss
        losses = self.heads.losses(step.features, step.target, self.task_loss, step.presence)
        losses = heads.weights * losses
        return (self.weights * torch.cat([losses, step.loss[None].to(losses)])).sum()

    def _estimate(self, trials: Trials) -> Tensor:
        unimodal = torch.ones_like(self.weights)
        unimodal[-1] = 0
        heads = dict(self.heads.items())
        ends: list[TrialLosses] = []
        for branches in (unimodal, 1 - unimodal):
            trial = trials.copy(heads)
            if not ends:
                before = trial.losses()
            trial.fit(branches, self.epochs)
            ends.append(trial.losses())
        alone, fused = ends
        after = TrialLosses(
            torch.cat([alone.train[:-1], fused.train[-1:]]),
            torch.cat([alone.valid[:-1], fused.valid[-1:]]),
        )
        return blending_weights(before, after, self.floor)


def blending_weights(before: TrialLosses, after: TrialLosses, floor: float) -> Tensor:
    """Weights of the branches from their losses before and after training each alone.

    Args:
        before: Losses before.
        after: Losses after.
        floor: Smallest squared overfitting.

    Returns:
        Shape of the losses, not negative, of sum 1.
    """
    gained = before.valid - after.valid
    overfitted = (after.valid - after.train) - (before.valid - before.train)
    raw = gained.relu() / overfitted.square().clamp_min(floor)
    raw = torch.where(torch.isfinite(raw), raw, 0.0)
    total = raw.sum()
    return torch.where(total > 0, raw / total, 1 / len(raw))


def _fixed(weights: Mapping[str, float], names: list[str]) -> list[float]:
    unknown = [name for name in weights if name not in names]
    values = [float(weights.get(name, 0.0)) for name in names]
    if unknown or not all(0 <= value < float("inf") for value in values) or sum(values) == 0:
        raise ValueError(
            f"Expected `weights` of {names}, not negative, finite and not all 0, "
            f"but got {dict(weights)}."
        )
    return [value / sum(values) for value in values]
