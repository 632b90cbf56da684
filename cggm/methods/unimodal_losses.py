"""Joint training with a loss for each modality alone."""

from collections.abc import Mapping

from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker


class UnimodalLosses(Balancer):
    r"""Joint training plus the losses of the heads, from features that are not detached.

    .. math:: L = L(f(x), y) + \gamma \sum_m L(f_m(h_m), y)

    Every encoder learns from the fused prediction and from its own head's, so that a modality the
    fusion ignores still gets a gradient. This is the uniform baseline of MMPareto (Wei & Hu, ICML
    2024) and the control that a balancing method has to beat: the same heads, no coefficient. With
    constant and equal weights it is also gradient blending without its estimate.

    Heads learn as in every method here: from detached features, by an optimizer of their own, whose
    step does not depend on ``weight``. A second pass through them, with their parameters held
    constant, gives the network the gradient of the loss above and leaves theirs alone; heads that
    draw random numbers draw anew in it. Batch statistics move in the first pass only.

    The loss is defined for any number of modalities and any task that the heads serve; published
    results are for classification. ``weight=0`` is joint training, and skips the second pass.

    Do not use it where a modality carries no signal: its encoder then fits noise, at full strength.
    Where the target needs modalities together (neither tells it alone) the heads' losses pull
    encoders away from what the fusion needs. The sum grows with the number of modalities. The
    heads' activations stay in memory until the backward pass. A network that works in place on
    what its encoders return changes what the heads see.

    Args:
        heads: Modality name to head, same names and order as the encoders; each takes what its
            encoder returns and ends in an attribute ``output_layer`` of the network's shape.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`; reported, without effect on training.
        weight: Weight of each head's loss, not negative.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If ``weight`` is negative or not finite.
    """

    serves_absence = True
    trains_through_heads = True
    heads: Heads
    scores: ScoreTracker

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        *,
        weight: float = 1.0,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"Expected `weight` not negative and finite, but got {weight}.")
        self.heads = Heads(heads, head_optimizer)
        self.score = score
        self.weight = weight
        self.scores = ScoreTracker(len(heads))

    def loss(self, step: Step) -> Tensor:
        """Task loss plus the weighted sum of the heads' losses."""
        heads = self.judge(step, self.score)
        self.readings = {"score": self.scores.scores(self.window), "head_loss": heads.losses}
        if self.weight == 0:
            return step.loss
        losses = self.heads.losses(step.features, step.target, self.task_loss, step.presence)
        return step.loss + self.weight * (heads.weights * losses).sum()
