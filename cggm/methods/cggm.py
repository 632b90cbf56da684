"""CGGM: classifier-guided gradient modulation."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.distributed import mean_over_ranks
from cggm.functional import (
    TERMS,
    balancing_terms,
    cosines,
    differentiable_twice,
    direction_loss,
    gated_terms,
    last_layer_gradient,
)
from cggm.heads import Criterion, HeadReadings, Heads, OptimizerFactory, default_optimizer
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker, SignalTracker, with_chance

_DIRECTIONS = ("gradients", "weights", None)
_TARGETS = ("gradient", "update")
_GATES = ("signal", None)


class CGGM(Balancer):
    r"""Classifier-guided gradient modulation (Guo et al., NeurIPS 2024, algorithm 1).

    A head judges each modality from detached features. How much the *other* heads' scores improved
    scales the gradient of an encoder (equations 7 and 8); the cosine between its head's gradient
    and the fused head's enters the loss (equations 12 and 13). Heads are trained along, by an
    optimizer of their own, and dropped at inference.

    Defaults differ from the paper in four ways that it needs to work (``docs/results.md``):

    - Gains come from moving averages of the scores and terms are bounded, because the ratio of
      equation (7) is singular.
    - The direction loss compares gradients of the same iteration, differentiably, because the last
      iteration's number (algorithm 1, line 15) has no gradient.
    - A modality counts by its head's score above chance, as a share of the best head's
      (``gate="signal"``). Without, a modality that carries no signal gets the largest factor,
      because its head never improves, the others are held back, and its direction is noise.
    - ``rho="unit"`` keeps the mean factor at 1; at rho 1 the terms lower the encoders' learning
      rate by (M - 1) / M, which is no balancing.

    ================ ==============================================================================
    default          ``rho="unit", gain="ema", terms="abs", direction="gradients", gate="signal"``
    paper            ``rho=1.0, gain="batch", terms="raw", gate=None``
    released code    ``rho=1.0, gain="batch", terms="released", direction="weights", gate=None``;
                     the cosine of weights, one step late, its terms without rho
    magnitude only   ``direction=None``
    direction only   ``rho=None``; the direction loss then takes terms of rho 1
    joint training   ``rho=None, direction=None``; heads still learn and report
    ================ ==============================================================================

    The gate also holds back a modality that is merely behind, and opens slowly as samples are
    memorized. Where all modalities are learnt at one pace CGGM makes no difference. Under Adam the
    constant part of a gradient factor cancels; see ``acts_on``.

    Args:
        heads: Modality name to head, same names and order as the encoders; each takes what its
            encoder returns and ends in an attribute ``output_layer`` of the network's shape.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: ``(prediction, target)`` to a scalar, higher is better, or to a pair of numerators
            and denominators, see :func:`cggm.scores.score_counts`. Need not be differentiable.
        rho: Scale of the gradient factors, positive, or ``"unit"`` for M / (M - 1); ``None`` leaves
            magnitudes alone.
        lam: Weight of the direction loss, not negative.
        gain: ``"ema"`` or ``"batch"`` (the paper), see :class:`cggm.scores.ScoreTracker`.
        terms: Kind of balancing terms, see :func:`cggm.functional.balancing_terms`.
        direction: What the cosines compare: ``"gradients"`` (the paper), ``"weights"`` (the
            released code) or ``None``.
        warmup: Optimizer steps without any modulation, while the heads are still untrained.
        acts_on: ``"gradient"``, or ``"update"`` to scale the step that the optimizer takes, which
            Adam cannot cancel.
        gate: ``"signal"`` or ``None`` (the paper), see :func:`cggm.scores.with_chance`; it stays
            shut where every micro-batch is one sample without spatial axes.
        head_optimizer: Builds the heads' optimizer from their parameters.
        betas: Decay of the moving averages of ``gain="ema"``.

    Raises:
        ValueError: If an argument is out of range.
    """

    serves_absence = True
    heads: Heads
    scores: ScoreTracker
    late_gradient: Tensor
    late_loss: Tensor

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        *,
        rho: float | Literal["unit"] | None = "unit",
        lam: float = 0.1,
        gain: str = "ema",
        terms: str = "abs",
        direction: str | None = "gradients",
        warmup: int = 0,
        acts_on: str = "gradient",
        gate: str | None = "signal",
        head_optimizer: OptimizerFactory = default_optimizer,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(task_loss)
        _check_choice("terms", terms, tuple(TERMS))
        _check_choice("direction", direction, _DIRECTIONS)
        _check_choice("acts_on", acts_on, _TARGETS)
        _check_choice("gate", gate, _GATES)
        if isinstance(rho, str):
            _check_choice("rho", rho, ("unit",))
            rho = len(heads) / max(len(heads) - 1, 1)
        if rho is not None and rho <= 0:
            raise ValueError(f'Expected `rho` to be positive, "unit" or None, but got {rho}.')
        if lam < 0 or warmup < 0:
            raise ValueError(f"Expected `lam` and `warmup` not negative, but got {lam}, {warmup}.")
        self.heads = Heads(heads, head_optimizer)
        self.score = score if gate is None else with_chance(score)
        self.rho, self.lam, self.warmup = rho, lam, warmup
        self.terms, self.direction = terms, direction
        self.acts_on, self.gate = acts_on, gate
        tracker = ScoreTracker if gate is None else SignalTracker
        self.scores = tracker(len(heads), gain, betas)
        if direction == "weights":
            shape = self.heads.output_weight(next(iter(heads))).shape
            self.register_buffer("late_gradient", torch.zeros(shape))
            self.register_buffer("late_loss", torch.zeros(()))
            self._next_late: tuple[Tensor, Tensor] | None = None

    def loss(self, step: Step) -> Tensor:
        """Task loss plus, where asked for, the direction loss of equation (13)."""
        heads = self.judge(step, self.score)
        gains, gates = self.scores.gains(self.window), self.scores.gates(self.window)
        terms = self._warmed_up(gated_terms(gains, gates, self.rho or 1.0, self.terms))  # eq. (7)
        fused = self._fused_gradient(step)
        self._report(heads, gates, terms, fused.detach())
        if self.direction is None or self.lam == 0:
            return step.loss
        if self.direction == "weights":
            return step.loss + self.lam * self._late_direction_loss(gains, gates)
        lam = self.lam * (self.clock.steps >= self.warmup)
        return step.loss + lam * direction_loss(fused, heads.gradients, gates * terms)

    def scales(self, step: Step) -> Tensor | None:
        """Balancing terms, equation (8)."""
        return self._used_terms() if self.acts_on == "gradient" else None

    def update_scales(self, step: Step) -> Tensor | None:
        """Balancing terms for the optimizer's own step."""
        return self._used_terms() if self.acts_on == "update" else None

    def commit(self) -> None:
        """Keep the direction loss of this step for the next, as the released code does."""
        if self.direction == "weights" and self._next_late is not None:
            self.late_gradient.copy_(self._next_late[0])
            self.late_loss.copy_(self._next_late[1])

    def _used_terms(self) -> Tensor | None:
        return None if self.rho is None else self.readings["term"]

    def _warmed_up(self, terms: Tensor) -> Tensor:
        return torch.ones_like(terms) if self.clock.steps < self.warmup else terms

    def _report(self, heads: HeadReadings, gates: Tensor, terms: Tensor, fused: Tensor) -> None:
        gains = self.scores.batch_gains(self.window)  # the paper's, whatever acts
        self.readings = {
            "score": self.scores.scores(self.window),
            "raw_term": balancing_terms(gains, self.rho or 1.0, "raw"),
            "term": torch.ones_like(terms) if self.rho is None else terms,
            "cosine": cosines(fused, heads.gradients),
            "head_loss": heads.losses,
        }
        if self.gate is not None:
            self.readings["gate"] = gates

    def _fused_gradient(self, step: Step) -> Tensor:
        """Gradient of the output layer over all ranks, differentiable in this rank's share."""
        differentiable = self.direction == "gradients" and self.lam > 0
        gradient = last_layer_gradient(
            step.loss,
            step.layer_inputs,
            step.layer_outputs,
            channels_last=self.binding.channels_last,
            create_graph=differentiable,
        )
        first = differentiable and self.calls == 1
        if first and not differentiable_twice(step.loss, step.layer_outputs):
            raise ValueError(
                "Expected a task loss that can be differentiated twice, because "
                'direction="gradients" back-propagates through its gradient, but PyTorch has no '
                "second derivative of it. Use direction=None, or another loss."
            )
        (mean,) = mean_over_ranks([gradient.detach()])
        return gradient + (mean - gradient).detach()

    def _late_direction_loss(self, gains: Tensor, gates: Tensor) -> Tensor:
        """Direction loss of the released code: the last step's, and its gradient there."""
        weight = self.binding.output_weight
        heads = torch.stack([self.heads.output_weight(n).detach().flatten(1) for n in self.heads])
        now = weight.detach().requires_grad_()
        terms = gates * gated_terms(gains, gates, 1.0, self.terms)
        loss = direction_loss(now.flatten(1), heads, terms)
        (gradient,) = torch.autograd.grad(loss, now)
        self._next_late = (gradient, loss.detach())
        return self.late_loss + (self.late_gradient * (weight - weight.detach())).sum()


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {list(choices)}, but got {value!r}.")
