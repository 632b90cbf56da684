"""MSLR: a learning rate for each modality."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import EpochScores, Numbers, check_factors, per_modality
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker
from cggm.trials import Trials

_STRATEGIES = ("keep", "smooth", "dynamic")


class ModalityLearningRates(Balancer):
    r"""Modality-specific learning rates (Yao and Mihalcea, Findings of ACL 2022).

    The best learning rates of unimodal models differ, so each encoder gets its own. With
    :math:`r_m` the unimodal rate over the shared one and e the epochs completed, the shared rate
    (the optimizer's, with its schedule) is multiplied for encoder m by

    ========= =====================================================================================
    keep      :math:`r_m`
    smooth    :math:`(1 - e/E)\, r_m + e/E`: from the unimodal rates to the shared one
    dynamic   :math:`r_m\, f_m` with :math:`f_m = a_m(e) / \mathrm{mean}(a_m(e-N+1), \dots, a_m(e))`
              and :math:`a_m` the validation score: up while it improves, down once it falls
    ========= =====================================================================================

    Fusion and output layer keep the shared rate. Factors scale the update, weight decay included.

    Our extensions. The published models are sums of unimodal classifiers; here scores come from
    heads, so that any fusion and task serves. They are scored on what ``held_out`` holds out at the
    end of each epoch, or :meth:`observe_validation` gives scores. Without either, :math:`a_m` is
    the head's mean score over the epoch's steps, each batch judged before the head learns from it;
    its encoder may have seen the sample in earlier epochs, so protection from overfitting is weaker
    than published. Scores below 0 (negated errors) take the inverse
    ratio; where a score changes its sign, or is not finite, the ratio is 1. ``limits`` are ours.

    Do not use *keep* and *smooth* without rates tuned on unimodal models. *dynamic* compares no
    modality with another, so it cannot balance those that improve at one pace. Joint training is
    ``strategy="keep", rates=1.0``, the default.

    Args:
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        heads: Modality name to head, as for CGGM; used by *dynamic* alone.
        score: ``(prediction, target)`` to a scalar or a pair, higher is better, see
            :func:`cggm.scores.score_counts`; used by *dynamic* alone.
        held_out: Holds out what *dynamic* scores the heads on.
        strategy: ``"keep"``, ``"smooth"`` or ``"dynamic"``; the last two need ``start_epoch``.
        rates: Unimodal rate over the shared one, by modality, or one number for all.
        epochs: Epochs until *smooth* reaches the shared rate (E).
        window: Epochs of the mean (N).
        limits: Smallest and largest factor of *dynamic*.
        compound: Whether a ratio multiplies the last factor, not the initial rate.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range, or, in ``bind``, if ``rates`` names other
            modalities than the encoders.
    """

    serves_absence = True
    factors: Tensor
    scores: ScoreTracker

    def __init__(
        self,
        task_loss: Criterion,
        heads: Mapping[str, nn.Module] | None = None,
        score: Score | None = None,
        held_out: Trials | None = None,
        *,
        strategy: str = "keep",
        rates: Numbers = 1.0,
        epochs: int = 30,
        window: int = 5,
        limits: tuple[float, float] = (0.5, 2.0),
        compound: bool = False,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        check_factors("rates", rates)
        _check(strategy, epochs, window, limits)
        self.strategy = strategy
        self.rates = rates
        self.epochs = epochs
        self.limits = limits
        self.compound = compound
        self.held_out = held_out
        self._rates = torch.ones(0)
        self._neutral = False
        if strategy == "dynamic":
            self._remember(heads, score, window, head_optimizer)

    def prepare(self, binding: Binding) -> None:
        """Put the rates into the order of the encoders."""
        rates = per_modality("rates", self.rates, binding.names)
        self._neutral = self.strategy == "keep" and bool((rates == 1).all())
        self._rates = rates.to(binding.device)

    def loss(self, step: Step) -> Tensor:
        """Task loss; heads of *dynamic* judge and learn beside it."""
        if self.strategy != "keep" and self.clock.epoch == 0:
            raise RuntimeError(
                f"Expected epochs to be announced to the {self.strategy} strategy, but none was. "
                "Attach a BalanceHandler, or call `start_epoch(epoch)`."
            )
        self.readings = {"term": self._terms()}
        if self.heads is not None:
            heads = self.judge(step, self.score)
            scores = self.scores.scores(self.window)
            self.readings |= {"score": scores, "head_loss": heads.losses}
        return step.loss

    def update_scales(self, step: Step) -> Tensor | None:
        """Each encoder's learning rate over the shared one."""
        return None if self._neutral else self.readings["term"]

    def commit(self) -> None:
        """Add the window's scores to the epoch's."""
        if self.strategy == "dynamic":
            self.epoch_scores.add(self.scores.scores(self.window))

    def observe_validation(self, scores: Mapping[str, float]) -> None:
        """Take validation scores of this epoch in place of training scores, as published.

        Args:
            scores: Modality name to score, higher is better; every epoch, alike on all ranks.

        Raises:
            ValueError: If names are not the encoders', or the strategy is another.
        """
        if self.strategy != "dynamic":
            raise ValueError(f"Expected strategy 'dynamic', but got {self.strategy!r}.")
        self.epoch_scores.validate(per_modality("scores", scores, self.binding.names))

    def end_epoch(self, epoch: int) -> None:
        """Score the heads on held-out data, unless their scores were given."""
        if self.strategy != "dynamic" or self.held_out is None:
            return
        if bool(self.epoch_scores.validation.isnan().all()):
            assert self.heads is not None
            scores = self.held_out.score(dict(self.heads.items()), self.score)
            self.epoch_scores.validate(scores)

    def start_epoch(self, epoch: int) -> None:
        """Set the rates of an epoch from the epochs completed."""
        if self.strategy == "dynamic" and 0 < self.clock.epoch < epoch:
            ratios = self.epoch_scores.close()
            factors = self.factors * ratios if self.compound else ratios
            self.factors.copy_(factors.clamp(*self.limits))
        super().start_epoch(epoch)

    def _remember(
        self,
        heads: Mapping[str, nn.Module] | None,
        score: Score | None,
        window: int,
        head_optimizer: OptimizerFactory,
    ) -> None:
        if heads is None or score is None:
            raise ValueError("Expected heads and a score for strategy 'dynamic', but got none.")
        count = len(heads)
        self.heads = Heads(heads, head_optimizer)
        self.score = score
        self.scores = ScoreTracker(count)
        self.epoch_scores = EpochScores(count, window)
        self.register_buffer("factors", torch.ones(count))

    def _terms(self) -> Tensor:
        if self.strategy == "smooth":
            done = min((self.clock.epoch - 1) / self.epochs, 1.0)
            return torch.lerp(self._rates, torch.ones_like(self._rates), done)
        return self._rates * self.factors if self.strategy == "dynamic" else self._rates


def _check(strategy: str, epochs: int, window: int, limits: tuple[float, float]) -> None:
    if strategy not in _STRATEGIES:
        raise ValueError(f"Expected `strategy` to be one of {_STRATEGIES}, but got {strategy!r}.")
    if epochs < 1 or window < 1:
        raise ValueError(f"Expected `epochs` and `window` >= 1, but got {epochs} and {window}.")
    if not 0 <= limits[0] <= 1 <= limits[1]:
        raise ValueError(f"Expected `limits` around 1, not negative, but got {limits}.")
