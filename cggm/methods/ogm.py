"""OGM and OGM-GE: on-the-fly gradient modulation, with noise for generalization."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import (
    add_noise,
    check_split,
    confidence_ratios,
    confidence_score,
    first_ranks_seed,
    ogm_factors,
    split_logits,
)
from cggm.passes import Step
from cggm.scores import Score, ratio_score, score_counts


class OGM(Balancer):
    r"""On-the-fly gradient modulation (Peng et al., CVPR 2022); with ``noise`` it is OGM-GE.

    The encoder of a modality that is ahead of the others gets a smaller gradient. With the summed
    probability of the true class, :math:`s_m = \sum_b \mathrm{softmax}(z_m)_{b, y_b}`,

    .. math:: \rho_m = \frac{s_m}{\mathrm{mean}_{k \neq m} s_k}, \quad
              k_m = 1 - \tanh(\alpha \rho_m) \text{ if } \rho_m > 1 \text{ else } 1, \quad
              g_m \leftarrow k_m g_m + \varepsilon

    The paper's noise has the covariance of stochastic gradients; its code, and this class, draw
    independent entries with the standard deviation of all entries of a weight's gradient before the
    scaling, also where k is 1; ``alpha=0`` then leaves noise alone.

    Published: two modalities, classification, features concatenated in front of a linear output
    layer, split into the logits :math:`z_m = W_m h_m + b / M`, under SGD; alpha 0.1 to 0.8, and
    modulation in the first 51 of 100 epochs, which are the default window. The factor falls from 1
    to :math:`1 - \tanh\alpha` where the ratio passes 1: one of two near equals is always slowed.
    ``logits="split"`` judges as published, where a network can be split. Our extensions:

    - ``logits="heads"``, for any network: heads that learn from detached features judge;
    - ``continuous=True`` takes :math:`\tanh(\alpha (\rho_m - 1))`, which does not jump: at alpha
      0.3 and the ratio 1.2 the factor is 0.940 in place of 0.655. It is another method, and is
      called ``ogm_continuous`` among the configurations;
    - three and more modalities: each against the mean of the others; a single one is left alone;
    - regression and dense prediction by ``score``. If a score is negative, such as a negated error,
      exponentials of the scores are compared;
    - the factor reaches all parameters of an encoder and the noise all gradients of two and more
      axes; the released code knew weights of four axes, convolutions, alone.

    Under accumulation the scores are the window's so far, and the noise's scale is that of the
    gradient over the mean factor. A loop of one's own that clips calls
    :meth:`~cggm.Balancer.finish_gradients` before it does, so that the noise is clipped, too.

    Do not use it where a modality carries no signal: the others are slowed down for nothing. Under
    Adam the constant part of a factor cancels (see ``acts_on``). A score of voxels in which
    background prevails gives ratios of 1, which do nothing.

    Args:
        heads: Modality name to head, see :class:`cggm.CGGM`; unused by ``logits="split"``.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`. Used where the prediction is not logits
            ``(B, C)`` or the target not class indices ``(B,)``; there the published one serves.
        alpha: Strength, not negative; 0 without noise is joint training.
        continuous: Whether the factor has no jump at ratio 1 (our extension).
        noise: Whether to add the noise of OGM-GE.
        logits: What judges a modality, ``"heads"`` or ``"split"``.
        first_epoch: First epoch of modulation and noise, from 1. A loop without a handler has to
            call ``start_epoch``, or it stays in epoch 1.
        last_epoch: Last such epoch; ``None`` for no end.
        acts_on: ``"gradient"``, or ``"update"`` (our extension) to scale the step that the
            optimizer takes, which Adam cannot cancel; not with ``noise``.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range; in the first call, if the output layer cannot
            be split, or if a score is needed and missing.
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module] | None,
        task_loss: Criterion,
        score: Score | None = None,
        *,
        alpha: float = 0.3,
        continuous: bool = False,
        noise: bool = False,
        logits: str = "heads",
        first_epoch: int = 1,
        last_epoch: int | None = 51,
        acts_on: str = "gradient",
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        _check(alpha >= 0, f"`alpha` not negative, but got {alpha}")
        epochs = (first_epoch, last_epoch)
        last = first_epoch if last_epoch is None else last_epoch
        _check(1 <= first_epoch <= last, f"1 <= `first_epoch` <= `last_epoch`, but got {epochs}")
        _check(logits in ("heads", "split"), f"`logits` 'heads' or 'split', but got {logits!r}")
        targets = ("gradient",) if noise else ("gradient", "update")
        _check(acts_on in targets, f"`acts_on` in {targets} as noise={noise}, but got {acts_on!r}")
        if logits == "heads":
            _check(heads is not None, "heads or logits='split', but got neither")
            self.heads = Heads(heads or {}, head_optimizer)
        self.score, self.alpha, self.continuous = score, alpha, continuous
        self.noise, self.epochs, self.acts_on = noise, epochs, acts_on
        self.serves_absence = logits == "heads"
        self._seed = torch.initial_seed() % 2**32

    @property
    def modulates(self) -> bool:
        """Whether this epoch is one of modulation."""
        first, last = self.epochs
        return first <= self.clock.current and (last is None or self.clock.current <= last)

    def loss(self, step: Step) -> Tensor:
        """Task loss; the modalities are judged on the way."""
        self._judge(step)
        scores = ratio_score(self.window["counts"])
        if step.presence is not None:  # where a modality was not seen there is nothing to compare
            scores = torch.where(self.window["seen"] > 0, scores, torch.nan)
        ratios = confidence_ratios(scores)
        terms = ogm_factors(ratios, self.alpha if self.modulates else 0.0, self.continuous)
        self.window.add("factors", torch.stack([terms, torch.ones_like(terms)]))
        self.readings = {"score": scores, "ratio": ratios, "term": terms}
        return step.loss

    def scales(self, step: Step) -> Tensor | None:
        """Factors k of the equation."""
        return self.readings["term"] if self.acts_on == "gradient" else None

    def update_scales(self, step: Step) -> Tensor | None:
        """Factors for the optimizer's own step."""
        return self.readings["term"] if self.acts_on == "update" else None

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Add the noise of OGM-GE, the same on all ranks."""
        if not (self.noise and self.modulates):
            return
        total, calls = self.window["factors"]
        spreads = torch.where(total > 0, calls / total, 0.0)
        if self.clock.steps == 0:
            self._seed = first_ranks_seed(self._seed, self.binding.device)
        mixed = self._seed * 1_000_003 + self.clock.steps
        generator = torch.Generator(self.binding.device).manual_seed(mixed)
        for spread, encoder in zip(spreads, self.binding.encoders.values(), strict=True):
            add_noise(encoder, spread, generator)

    def get_extra_state(self) -> dict[str, int]:
        """The noise's seed."""
        return {"seed": self._seed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self._seed = state["seed"]

    def _judge(self, step: Step) -> None:
        """Add score counts, ``(M, 2, K)``, to the window."""
        score = confidence_score(self.score, step.prediction, step.target)
        if self.heads is not None:
            self.judge(step, score)
            return
        features = {name: step.features[name] for name in self.binding.names}
        layer = self.binding.output_layer
        if self.calls == 1:
            check_split(features, step.layer_input, layer)
        logits = split_logits(features, step.layer_input, layer)
        counts = [score_counts(score, part, step.target) for part in logits]
        self.window.gather(counts=torch.stack(counts))


def _check(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"Expected {expected}.")
