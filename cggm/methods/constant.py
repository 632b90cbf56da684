"""A constant factor for each encoder: the control of methods whose factors change over time."""

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Criterion
from cggm.methods._parts import Numbers, check_factors, per_modality
from cggm.passes import Step

_TARGETS = ("gradient", "update")


class ConstantFactors(Balancer):
    r"""Encoder i is scaled by a constant, whatever happens: a control, of no paper.

    .. math:: \tilde g_i = c_i g_i

    The terms of CGGM (equation 7) lower the encoders' learning rate by :math:`\rho (M-1)/M` on
    average, relative to fusion and output layer. What CGGM gains over joint training may be owed to
    that alone; what it gains over this control, with the mean of its terms as ``factors``, is not.
    A factor per modality separates a lasting preference for a modality from following its progress.

    Not a method to train with: a constant factor is a learning rate to be tuned. Under Adam a
    constant factor of the gradient cancels, except for clipping and epsilon; ``acts_on="update"``
    is what Adam feels. Serves any task and any number of modalities. ``factors=1.0`` is joint
    training.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        factors: One factor for all encoders, or modality name to factor; ``None`` for
            :math:`(M-1)/M`, the mean of CGGM's terms at rho 1, and 1 for a single modality.
        acts_on: ``"gradient"``, or ``"update"`` to scale the step that the optimizer takes.

    Raises:
        ValueError: If an argument is out of range, or, in ``bind``, if ``factors`` names other
            modalities than the encoders.
    """

    serves_absence = True

    def __init__(
        self,
        task_loss: Criterion,
        *,
        factors: Numbers | None = None,
        acts_on: str = "gradient",
    ) -> None:
        super().__init__(task_loss)
        if factors is not None:
            check_factors("factors", factors)
        if acts_on not in _TARGETS:
            raise ValueError(f"Expected `acts_on` to be one of {_TARGETS}, but got {acts_on!r}.")
        self.factors = factors
        self.acts_on = acts_on
        self._factors = torch.ones(0)
        self._neutral = False

    def prepare(self, binding: Binding) -> None:
        """Put the factors into the order of the encoders."""
        names = binding.names
        mean = (len(names) - 1) / len(names) if len(names) > 1 else 1.0
        factors = per_modality("factors", mean if self.factors is None else self.factors, names)
        self._neutral = bool((factors == 1).all())
        self._factors = factors.to(binding.device)

    def loss(self, step: Step) -> Tensor:
        """Task loss."""
        self.readings = {"term": self._factors}
        return step.loss

    def scales(self, step: Step) -> Tensor | None:
        """The factors, where they act on gradients."""
        return self._factors if self.acts_on == "gradient" and not self._neutral else None

    def update_scales(self, step: Step) -> Tensor | None:
        """The factors, where they act on the optimizer's step."""
        return self._factors if self.acts_on == "update" and not self._neutral else None
