"""UME: an ensemble of modalities that are trained apart."""

import torch
from torch import Tensor

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.contract import check_late_fusion
from cggm.heads import Criterion
from cggm.passes import Step
from cggm.tensors import samples_with


class UnimodalEnsemble(Balancer):
    r"""Unimodal ensemble (Du et al., ICML 2023): M models in one run, averaged at inference.

    .. math:: L = \sum_m L(z_m, y), \qquad p = \frac{1}{M} \sum_m \mathrm{softmax}(z_m)

    where :math:`z_m` is what a late-fusion network predicts from modality m alone. The modalities
    never meet: no parameter has a gradient from another modality, so this is at once the unimodal
    training of M models, with one schedule and the same batches for all. ``prediction`` averages
    only what they learnt apart, and there is no competition to balance.

    The network averages, by its rule: ``"probabilities"`` as in the equation, or ``"mean"``, of
    logits (the other common choice) or of values. Any number of modalities, any task that the
    network's heads serve; the equal weights are those of the paper, and regression is our
    extension. ``joint`` is our extension too: with the weight :math:`\kappa`,

    .. math:: L = \kappa L(z, y) + (1 - \kappa) \sum_m L(z_m, y)

    Do not use it where the target needs modalities together (neither tells it alone): nothing here
    learns that. A useless modality counts as much as the others. Apart means the loss: clipping by
    the norm of all gradients, and early stopping on the ensemble, still tie the models together.

    Args:
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every modality.
        joint: Weight of the combined prediction's loss, in [0, 1]; 1 is the joint training of a
            late-fusion network.

    Raises:
        ValueError: If ``joint`` is out of range; in ``bind``, if the network does not fuse late or
            does not average.
    """

    replaces_loss = True
    serves_absence = True

    def __init__(self, task_loss: Criterion, *, joint: float = 0.0) -> None:
        super().__init__(task_loss)
        if not 0 <= joint <= 1:
            raise ValueError(f"Expected `joint` in [0, 1], but got {joint}.")
        self.joint = joint

    def prepare(self, binding: Binding) -> None:
        """Refuse a network that is no average of unimodal predictions."""
        check_late_fusion(binding.output_layer, "UME")
        rule = binding.output_layer.rule
        if rule not in ("probabilities", "mean"):
            raise ValueError(
                "Expected the rule 'probabilities' or 'mean', because UME averages models that "
                f"were trained apart, but the network combines by {rule!r}. Change its rule."
            )

    def loss(self, step: Step) -> Tensor:
        """Sum of the modalities' own losses, and the combined one's share."""
        if self.joint == 1:
            return step.loss
        losses = torch.stack([self._loss_of(name, step) for name in self.binding.names])
        self.readings = {"head_loss": losses.detach()}
        return torch.lerp(losses.sum(), step.loss, self.joint) if self.joint else losses.sum()

    def _loss_of(self, name: str, step: Step) -> Tensor:
        """Loss of one modality over the samples that have it, 0 where none has."""
        prediction = step.unimodal[name]
        if step.presence is not None and name in step.presence.absent:
            return 0 * prediction.sum()
        return self.task_loss(*samples_with(prediction, step.target, name, step.presence))
