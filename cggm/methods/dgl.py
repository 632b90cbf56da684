"""DGL: gradients of encoders and of the fusion, kept apart."""

from typing import Any

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Criterion
from cggm.methods._parts import features_of
from cggm.passes import Step
from cggm.tensors import Features, map_tensors, samples_with


class DGL(Balancer):
    r"""Disentangled gradient learning (Wei, Luo & Luo, ICCV 2025).

    In joint training the fusion suppresses the gradient that an encoder would get alone. So
    encoders learn from predictions of their modality alone, and the fusion from features whose
    gradient is cut. With the fusion and output layer F and the stop gradient sg,

    .. math:: L = L(F(\mathrm{sg}[h_1], \dots, \mathrm{sg}[h_M]), y)
              + \alpha \sum_m L(F(h_m, 0), y) \tag{1}

    .. math:: \nabla_F L = \nabla_F L(F(\mathrm{sg}[h_1], \dots, \mathrm{sg}[h_M]), y), \qquad
              \nabla_{\varphi_m} L = \alpha \nabla_{\varphi_m} L(F(h_m, 0), y) \tag{2}

    where 0 stands for the features of all other modalities: the second term of (1) passes through
    the fusion and leaves no gradient in its parameters. It takes a pass through the fusion for each
    modality, which moves no running statistics. Boolean masks beside features become false.

    Published for two modalities and classes, under SGD (learning rate 0.002, gradients clipped at
    40) with alpha 4 to 5. Nothing in it needs classes or two modalities. Ours: ``detach=False``,
    which keeps the gradient of joint training, for ablations; losses of the samples that have a
    modality, where some lack it.

    Do not use it where the target needs modalities together: no encoder ever learns from the fused
    prediction. A modality without signal fits noise. Alpha is a learning rate of the encoders:
    under Adam, or with clipping, it has other effects than published.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        alpha: Weight of the losses of one modality alone, not negative.
        detach: Whether the fused loss leaves encoders alone, as published; ``alpha=0`` with
            ``detach=False`` is joint training.

    Raises:
        ValueError: If ``alpha`` is negative or not finite, or 0 while encoders are detached; in
            ``bind``, if the network has no ``decode``.
    """

    serves_absence = True

    def __init__(self, task_loss: Criterion, *, alpha: float = 4.0, detach: bool = True) -> None:
        super().__init__(task_loss)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"Expected `alpha` not negative and finite, but got {alpha}.")
        if detach and alpha == 0:
            raise ValueError(
                "Expected `alpha` above 0 with detach=True, because encoders learn by it alone, "
                "but got 0. Set detach=False for joint training."
            )
        self.alpha, self.detach = alpha, detach

    def prepare(self, binding: Binding) -> None:
        """Refuse a fusion that cannot be run again."""
        binding.require_decode("DGL")

    def fuse(self, name: str, features: Features) -> Features:
        """Features whose gradient is cut."""
        return map_tensors(_cut, features) if self.detach else features

    def loss(self, step: Step) -> Tensor:
        """Equation (1)."""
        if self.alpha == 0:
            return step.loss
        alone = torch.stack([self._alone(name, step) for name in self.binding.names])
        self.readings = {"unimodal_loss": alone.detach()}
        return step.loss + self.alpha * alone.sum()

    def _alone(self, name: str, step: Step) -> Tensor:
        """Loss of the fusion's prediction from one modality; 0 where no sample has it."""
        if step.presence is not None and name in step.presence.absent:
            return step.loss.new_zeros(())
        given = features_of(name, step, self.binding.names)
        prediction = self.binding.decode(given, constant=True)
        return self.task_loss(*samples_with(prediction, step.target, name, step.presence)).float()


class _Cut(torch.autograd.Function):
    """Identity without a gradient that leaves its input in the graph, where DDP looks for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ANN401
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        return torch.zeros_like(gradient)


def _cut(tensor: Tensor) -> Tensor:
    return _Cut.apply(tensor) if tensor.requires_grad else tensor
