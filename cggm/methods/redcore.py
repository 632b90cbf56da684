"""RedCore: supervision of each modality, weighted by its relative advantage."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import DrawingBalancer, ModalityDraws, Numbers, relative_advantages
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker


class RedCore(DrawingBalancer):
    r"""Relative advantage aware supervision (RedCore; Sun et al., AAAI 2024), its rule of weights.

    Where modalities are missing at different rates, the rare ones fall behind. Each is supervised
    by a loss of its own, :math:`L_m`; one whose loss is above the average gets more weight:

    .. math:: L = L_{task} + \lambda \sum_m \beta_m L_m \tag{1}

    .. math:: \bar L_m \leftarrow (1 - \mu) \bar L_m + \mu L_m, \qquad
              r_m = \frac{\frac1M \sum_k \bar L_k - \bar L_m}{\frac1M \sum_k \bar L_k} \tag{2}

    .. math:: \beta_m \leftarrow \max(\beta_{min}, \beta_m - \eta r_m), \qquad
              \beta \leftarrow \beta / \lVert \beta \rVert_2 \tag{3}

    (2) moves in every step in which a sample has the modality, (3) in every second one, the first
    included, before the step's loss is weighted. :math:`\beta` starts at 1, and :math:`\eta` grows
    by 1.5 with the first step and every 500 further ones. As in the published code,
    :math:`\mu = 0.7` weighs the new loss; its run for IEMOCAP moves :math:`\beta` in every third
    step.

    Published with variational encoders that impute what is missing from the other modalities:
    :math:`L_m` is there the squared error of the imputation, :math:`\lambda` 0.15, and plain losses
    of the modalities' heads stand beside it. Imputation is the network's affair and no part of
    this class. Ours is therefore, and must be said of any figure: the losses of heads, which learn
    from detached features by an optimizer of their own, take the place of :math:`L_m`, and
    :math:`\lambda` is 1.

    ``p`` takes modalities from samples, see :class:`cggm.methods.ModalityDropout`; with
    ``per="case"`` from the same ones in every epoch. What was taken, and what a batch lacks by
    itself, is out of :math:`L_m`, and a modality that no sample has keeps its mean.
    Under accumulation :math:`L_m` is the window's so far. ``weight=0`` and ``p=0`` is joint
    training.

    Do not use it where a modality carries no signal: its loss stays high, and it ends with the
    largest weight. Losses of modalities have to be of one scale.

    Args:
        heads: Modality name to head, see :class:`cggm.methods.UnimodalLosses`.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`; reported, without effect on training.
        weight: Weight :math:`\lambda` of all supervision, not negative.
        momentum: Share :math:`\mu` of the new loss, in (0, 1].
        eta: Step size :math:`\eta`, not negative.
        growth: Factor of the step size, positive.
        growth_every: Steps between two such factors.
        every: Steps between two moves of the weights.
        floor: Smallest weight :math:`\beta_{min}` before it is normalized, positive.
        p: Probability of taking each modality from a sample; 0 for complete data.
        per: See :class:`cggm.methods.ModalityDropout`.
        subsets: See there.
        seed: Seed of the draws.
        samples: Number of samples in the training data, for ``per="case"``.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    serves_absence = True
    trains_through_heads = True
    heads: Heads
    scores: ScoreTracker
    mean: Tensor
    beta: Tensor

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        *,
        weight: float = 1.0,
        momentum: float = 0.7,
        eta: float = 0.1,
        growth: float = 1.5,
        growth_every: int = 500,
        every: int = 2,
        floor: float = 0.1,
        p: Numbers = 0.0,
        per: str = "case",
        subsets: str = "independent",
        seed: int = 0,
        samples: int | None = None,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        _check(0 <= weight < float("inf"), f"`weight` not negative and finite, but got {weight}")
        _check(0 < momentum <= 1, f"`momentum` in (0, 1], but got {momentum}")
        _check(eta >= 0 < growth, f"`eta` not negative and `growth` positive: {eta}, {growth}")
        _check(
            min(growth_every, every) >= 1, f"positive intervals, but got {growth_every}, {every}"
        )
        _check(floor > 0, f"`floor` positive, but got {floor}")
        self.draws = ModalityDraws(p, per, subsets, seed, samples)
        self.heads = Heads(heads, head_optimizer)
        self.score, self.scores = score, ScoreTracker(len(heads))
        self.weight, self.momentum, self.floor = weight, momentum, floor
        self.eta, self.growth, self.growth_every, self.every = eta, growth, growth_every, every
        self.register_buffer("mean", torch.zeros(len(heads)))
        self.register_buffer("beta", torch.ones(len(heads)))

    def loss(self, step: Step) -> Tensor:
        """Equation (1)."""
        if self.draws.active:
            step = replace(step, presence=self.draws.presence(self.binding.names))
        said = self.judge(step, self.score)
        self.window.gather(losses=said.losses.nan_to_num() * said.seen)
        mean, beta = self._moved()
        advantage = relative_advantages(mean)
        scores = self.scores.scores(self.window)
        self.readings = {"score": scores, "head_loss": said.losses, "weight": beta.clone()}
        self.readings["advantage"] = advantage
        if self.weight == 0:
            return step.loss
        losses = self.heads.losses(step.features, step.target, self.task_loss, step.presence)
        return step.loss + self.weight * (beta * said.weights * losses).sum()

    def commit(self) -> None:
        """Move mean losses and weights by the window's."""
        mean, beta = self._moved()
        self.mean.copy_(mean)
        self.beta.copy_(beta)

    def _moved(self) -> tuple[Tensor, Tensor]:
        """Equations (2) and (3)."""
        seen, losses = self.window["seen"], self.window["losses"]
        new = losses / torch.where(seen > 0, seen, 1.0)
        mean = torch.where(seen > 0, torch.lerp(self.mean, new, self.momentum), self.mean)
        if self.clock.steps % self.every:
            return mean, self.beta
        eta = self.eta * self.growth ** (1 + self.clock.steps // self.growth_every)
        beta = (self.beta - eta * relative_advantages(mean)).clamp_min(self.floor)
        return mean, beta / beta.norm()


def _check(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"Expected {expected}.")
