"""MMPareto: multimodal and unimodal gradients of each encoder, combined without conflict."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm.balancer import Balancer
from cggm.distributed import sum_over_ranks
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker

# Keeps half-precision gradients of the heads' losses out of the subnormal range.
_HALF_SCALE = 1024.0


class MMPareto(Balancer):
    r"""MMPareto (Wei & Hu, ICML 2024).

    Each encoder gets the gradient :math:`g^{mm}` of the fused loss and :math:`g^{uni}` of its
    head's loss. Where they agree they are added; where they conflict, the common descent direction
    of smallest norm is taken, with the strength of the sum:

    .. math:: \alpha = \begin{cases}
              \tfrac12 & \cos(g^{mm}, g^{uni}) > 0 \\
              \mathrm{clip}\left(\frac{(g^{uni} - g^{mm})^\top g^{uni}}
              {\lVert g^{mm} - g^{uni} \rVert^2}, 0, 1\right) & \text{otherwise}
              \end{cases}

    .. math:: g = 2 (\alpha g^{mm} + (1 - \alpha) g^{uni}), \quad
              g \leftarrow \gamma g \max\left(1,
              \frac{\lVert g^{mm} + g^{uni} \rVert}{\lVert g \rVert}\right)

    Published for two and three modalities and classification, under SGD, with
    :math:`\gamma = 1.5`; each encoder is treated alone, so it is defined for any number and any
    task that heads serve. Ours: ``weight``; heads that learn as in every method here, from
    detached features by an optimizer of their own; the plain sum where the combination vanishes
    (gradients exactly opposed, or one of them zero), which has no direction to rescale; and
    :math:`g^{mm}` where the combination is not finite.

    :math:`g^{uni}` is the mean over the window's micro-batches and over ranks; the loop has to
    average likewise. It takes one more backward pass through every encoder, memory for one
    gradient of it, and a graph kept for two. A loop of one's own that clips calls
    :meth:`~cggm.Balancer.finish_gradients` before it does: else the combination is made as the
    optimizer steps, after a clipping that saw :math:`g^{mm}` alone. With several optimizers under a
    gradient scaler, unscale all before the first one steps.

    Do not use it where a modality carries no signal: the noise of its head gets a full share. Under
    Adam :math:`\gamma` cancels, and the direction alone is left.

    Args:
        heads: Modality name to head, see :class:`cggm.CGGM`.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`; reported, without effect on training.
        weight: From the gradient of joint training, 0, to the published combination, 1.
        gamma: Factor of the combination, positive.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range.
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
        gamma: float = 1.5,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        if not 0 <= weight <= 1 or not 0 < gamma < float("inf"):
            raise ValueError(
                "Expected `weight` in [0, 1] and `gamma` positive and finite, "
                f"but got {weight} and {gamma}."
            )
        self.heads = Heads(heads, head_optimizer)
        self.score, self.scores = score, ScoreTracker(len(heads))
        self.weight, self.gamma = weight, gamma
        self._loss_scale: Tensor | None = None
        self._directions: dict[str, Tensor] = {}

    def loss(self, step: Step) -> Tensor:
        """Task loss; the gradients of the heads' losses are gathered on the way."""
        heads = self.judge(step, self.score)
        self.readings = {"score": self.scores.scores(self.window), "head_loss": heads.losses}
        self.readings |= self._directions
        if self.weight > 0:
            self._gather(step, heads.seen)
        return step.loss

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Combine the gradients of each encoder."""
        if self.weight == 0:
            return
        rows = []
        for seen, name in zip(self.window["seen"], self.binding.names, strict=True):
            sums = list(self.window.named(f"gradient/{name}/").values())
            unimodal = [u / torch.where(seen > 0, seen, 1.0) for u in sum_over_ranks(sums)]
            fused = [_gradient(p) for p in _trainable(self.binding.encoders[name])]
            rows.append(self._combine(fused, unimodal, seen > 0))
        cosines, terms = (torch.stack(column) for column in zip(*rows, strict=True))
        self._directions = {"cosine": cosines, "term": terms}
        self.readings |= self._directions

    def get_extra_state(self) -> dict[str, Tensor]:
        """Readings of the last step, which those of the next window begin with."""
        return dict(self._directions)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self._directions = {
            name: value.to(self.scores.last.device) for name, value in state.items()
        }

    def before_step(self, optimizer: Optimizer | None) -> None:
        """Note the loss scale, and let gradients be combined."""
        self._loss_scale = getattr(optimizer, "grad_scale", None)  # of a fused optimizer
        super().before_step(optimizer)

    def _gather(self, step: Step, seen: Tensor) -> None:
        """Add the gradient of each head's loss in its encoder to the window."""
        losses = self.heads.losses(step.features, step.target, self.task_loss, step.presence)
        scale = _HALF_SCALE if torch.is_autocast_enabled(losses.device.type) else 1.0
        losses = losses * seen  # the mean over all samples that have the modality, in the end
        for loss, (name, encoder) in zip(losses, self.binding.encoders.items(), strict=True):
            own = _trainable(encoder)
            raw = torch.autograd.grad(scale * loss, own, retain_graph=True, materialize_grads=True)
            for index, gradient in enumerate(raw):
                self.window.add(f"gradient/{name}/{index}", gradient.float() / scale)

    def _combine(
        self, gradients: list[Tensor], unimodal: list[Tensor], seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change an encoder's gradients in place, where samples of the window had the modality.

        Returns:
            The cosine, and the weight of the fused loss.
        """
        scale = 1.0 if self._loss_scale is None else self._loss_scale
        mm = torch.cat([g.flatten().float() for g in gradients]) / scale
        g, cosine, term = pareto(mm, torch.cat([u.flatten() for u in unimodal]), self.gamma)
        combined = torch.lerp(mm, g, self.weight)
        g = torch.where(torch.isfinite(g).all() & seen, combined, mm) * scale
        parts = torch.split(g, [x.numel() for x in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return cosine, term


def pareto(mm: Tensor, uni: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Combine two gradients, see :class:`MMPareto`.

    Args:
        mm: Gradient of the fused loss, flat.
        uni: Gradient of the head's loss, flat.
        gamma: Factor of the result.

    Returns:
        The combination, and two scalars: the cosine and the weight of ``mm``.
    """
    norms = mm.norm() * uni.norm()
    cosine = torch.where(norms > 0, (mm @ uni) / norms, 0.0)
    difference = uni - mm
    smallest = (difference @ uni) / difference.square().sum().clamp_min(1e-38)
    term = torch.where(cosine > 0, 0.5, smallest.clamp(0, 1))
    g, plain = 2 * (term * mm + (1 - term) * uni), mm + uni
    size, wanted = g.norm(), plain.norm()
    vanishes = size <= 1e-6 * (mm.norm() + uni.norm())
    g = torch.where(vanishes, plain, g * (wanted / size).clamp_min(1.0))
    return gamma * g, cosine, term


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # out of the fused loss's reach
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _trainable(encoder: nn.Module) -> list[nn.Parameter]:
    return [p for p in encoder.parameters() if p.requires_grad]
