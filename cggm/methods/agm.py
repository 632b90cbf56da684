"""AGM: adaptive gradient modulation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.contract import check_single
from cggm.heads import Criterion
from cggm.methods._parts import combined, shapley_weights
from cggm.passes import Step
from cggm.scores import ratio_score, score_counts
from cggm.tensors import Features, subsets_of, zeros_of

_MOST = 6


class AGM(Balancer):
    r"""Adaptive gradient modulation (Li et al., ICCV 2023).

    The response of a modality is its Shapley value, with :math:`f(S)` the prediction without the
    modalities outside S, :math:`f(\emptyset) = 0` and :math:`f` of all the network's own:

    .. math:: \varphi_m = \sum_{S \not\ni m} \frac{|S|! (M - |S| - 1)!}{M!}
              \left( f(S \cup m) - f(S) \right)

    Its task loss :math:`s_m` says how well it competes now, the mean :math:`\hat s_m` over the
    steps before how well it used to. The gradient that reaches :math:`\varphi_m` is scaled, so
    that a modality ahead of its own reference is held back:

    .. math:: r_m = e^{\frac{M}{M-1} (\bar s - s_m)}, \quad \tau_m = r_m(\hat s), \quad
              \kappa_m = e^{\alpha \, \mathrm{clip}(\tau_m - r_m, -c, c)}

    As responses add up to the prediction, the loss has the value of the task loss; equal factors
    give its gradient times them. Masked passes run in eval mode with gradient, as published, and
    move no running statistics, while the network's own pass is one of training: where dropout or
    BatchNorm make the two differ, responses contain that difference.

    Published: two or three modalities, classification, inputs of zeros. Our extensions:

    - features of zeros instead of inputs, so that encoders run once; boolean masks become false;
    - four to six modalities; a single one is trained jointly;
    - one number per sample, ``(B,)`` or ``(B, 1)``: a response is only a share of it, so
      :math:`f(\{m\})` is judged; dense classes are judged by responses, as classes are;
    - the lower cap; ``beta``, as the published mean of all steps lags in long runs.

    The published loss of a response takes no probability below 1e-8; ours is the task loss itself.
    Under accumulation :math:`s_m` is the window's so far; where it is not finite, factors are 1.

    Do not use it where passes through the fusion are dear: a step makes :math:`2^M - 2` more of
    them, 14 for four modalities, and keeps their activations. A fusion with biases answers without
    any modality, which all responses share. A loop without ``start_epoch`` stays in epoch 1.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        alpha: Strength, 0 is joint training and measures nothing; the authors take 1 to 1.5.
        cap: Bound c of the exponent, not negative.
        beta: Decay of a moving average of the losses, in [0, 1); ``None`` for the mean of all.
        first_epoch: First epoch of modulation, from 1; other epochs measure nothing.
        last_epoch: Last such epoch; ``None`` for no end.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network has no ``decode`` or
            more than six modalities.
    """

    replaces_loss = True
    weights: Tensor
    mean: Tensor
    steps: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        *,
        alpha: float = 1.0,
        cap: float = 10.0,
        beta: float | None = None,
        first_epoch: int = 1,
        last_epoch: int | None = None,
    ) -> None:
        super().__init__(task_loss)
        if min(alpha, cap) < 0 or not 0 <= (beta or 0) < 1:
            found = f"{alpha}, {cap} and {beta}"
            raise ValueError(
                f"Expected `alpha`, `cap` not negative, `beta` in [0, 1) or None, but got {found}."
            )
        epochs = (first_epoch, last_epoch)
        if not 1 <= first_epoch <= (first_epoch if last_epoch is None else last_epoch):
            raise ValueError(f"Expected 1 <= `first_epoch` <= `last_epoch`, but got {epochs}.")
        self.alpha, self.cap, self.beta, self.epochs = alpha, cap, beta, epochs
        self.register_buffer("weights", torch.zeros(0), persistent=False)
        self.register_buffer("mean", torch.zeros(0, dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(self, binding: Binding) -> None:
        """Refuse a fusion that cannot be run again, or would have to too often."""
        binding.require_decode("AGM")
        count = len(binding.names)
        if count > _MOST:
            raise ValueError(
                f"Expected at most {_MOST} modalities, because AGM needs a pass through the fusion "
                f"for each of their subsets, but got {count}, which is {2**count} passes per step. "
                "Choose another method."
            )
        if len(self.mean) != count:
            self.mean = torch.zeros(count, dtype=torch.float32)
        self.weights = shapley_weights(binding.names)

    def loss(self, step: Step) -> Tensor:
        """Task loss whose gradient reaches the responses scaled."""
        first, last = self.epochs
        modulates = first <= self.clock.current and (last is None or self.clock.current <= last)
        if self.alpha == 0 or not modulates or len(self.mean) == 1:
            return step.loss
        check_single(step.prediction, "AGM")
        names = self.binding.names
        predictions = self._predictions(step)
        factors = self._judge(step, predictions)
        mixed = combined((factors[:, None] * self.weights).sum(0), predictions)
        # the value is the prediction's to the last bit, the gradient that of the scaled responses
        scaled = predictions[tuple(names)].detach() + (mixed - mixed.detach())
        return self.task_loss(scaled, step.target)

    @torch.no_grad()
    def commit(self) -> None:
        """Move the mean losses by the window's."""
        if "counts" not in self.window:
            return
        losses = ratio_score(self.window["counts"])
        finite = losses.isfinite().all()
        self.steps += finite
        weight = 1 / self.steps.clamp_min(1)
        if self.beta is not None:
            weight = weight.clamp_min(1 - self.beta)
        self.mean.copy_(torch.where(finite, torch.lerp(self.mean, losses, weight), self.mean))

    def _predictions(self, step: Step) -> dict[tuple[str, ...], Tensor]:
        """Prediction of each subset of modalities, at least float32."""
        names = self.binding.names
        blank = {name: zeros_of(step.features[name]) for name in names}
        predictions = {}
        for subset in subsets_of(names)[:-1]:
            shown: dict[str, Features] = {n: step.features[n] for n in subset}
            masked = {name: shown.get(name, blank[name]) for name in names}
            predictions[subset] = _full(self.binding.decode(masked, training=False))
        return predictions | {tuple(names): _full(step.prediction)}

    @torch.no_grad()
    def _judge(self, step: Step, predictions: Mapping[tuple[str, ...], Tensor]) -> Tensor:
        """Factors kappa, ``(M,)``."""
        answers = [combined(row, predictions) for row in self.weights]
        if step.prediction.shape[1:] in ((), (1,)):
            answers = [predictions[name,] for name in self.binding.names]
        rows = [score_counts(self.task_loss, answer, step.target) for answer in answers]
        self.window.gather(counts=torch.stack(rows))
        losses = ratio_score(self.window["counts"])
        factors = agm_factors(losses, self.mean, self.alpha, self.cap)
        self.readings = {"score": -losses, "term": factors}
        return factors


def agm_factors(losses: Tensor, means: Tensor, alpha: float, cap: float) -> Tensor:
    """Factors kappa of :class:`AGM` from losses now and their means before, all of shape ``(M,)``.

    Example:
        >>> agm_factors(torch.tensor([0.5, 1.5, 1.5]), torch.zeros(3), 0.4, 10.0)
        tensor([0.5029, 1.1704, 1.1704])
    """
    ahead = _ratios(means) - _ratios(losses)
    return (alpha * ahead.nan_to_num(0.0).clamp(-cap, cap)).exp()


def _ratios(losses: Tensor) -> Tensor:
    count = len(losses)
    return (count / (count - 1) * (losses.mean() - losses)).exp()


def _full(prediction: Tensor) -> Tensor:
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))
