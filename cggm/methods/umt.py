"""UMT: unimodal teachers, whose features the encoders keep."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Criterion
from cggm.methods._parts import feature_distance, frozen, train_teachers
from cggm.passes import Step
from cggm.tensors import samples_with
from cggm.trials import Trials


class UnimodalTeacher(Balancer):
    r"""Unimodal teacher (UMT; Du et al., ICML 2023).

    Joint training learns the features of each modality worse than training on it alone. A frozen
    teacher :math:`\hat\varphi_m` of the encoder's architecture, trained on its modality alone,
    therefore draws the encoder's features :math:`h_m` to its own:

    .. math:: L = L_{task} + \lambda \sum_m \frac{1}{D_m} \lVert h_m - \hat\varphi_m(x_m) \rVert^2

    averaged over samples, steps and voxels. A teacher runs in eval mode on exactly what its encoder
    got, augmentation included. Where an encoder returns several tensors, such as the levels of
    a segmentation network, the distance is their mean. A bool tensor beside values in the same
    container, whose shape is the values' leading axes, says which of them count: padding does not.
    Published for two modalities and classification; defined for any number and any task.

    Teachers are given, or trained before the first epoch from the network's initial, perhaps
    pretrained, encoders with a head each, which are then dropped. That takes ``epochs`` epochs of
    training, with the schedule of the students'. A state holds the teachers, so that a resumed run
    does not train them again.

    Limits: the paper's weight was not found; the distance depends on the features' scale, so the
    weight has to be tuned. Do not use it where modalities tell nothing alone and only together: the
    teacher then holds the encoder back; nor without the memory and time of a second forward pass
    through every encoder.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        heads: Modality name to head, which takes what the encoder returns; needed to train
            teachers.
        trials: Trains the teachers; unused where they are given.
        teachers: Modality name to trained encoder; copied.
        weight: Weight :math:`\lambda`, not negative; 0 is joint training without teachers.
        epochs: Epochs that teachers are trained for; as many as the students' where not given.

    Raises:
        ValueError: If an argument is out of range, if there are neither teachers nor what trains
            them, or if names do not match the encoders'.
        RuntimeError: In the first call, if the teachers were not trained.
    """

    serves_absence = True
    trained: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        heads: Mapping[str, nn.Module] | None = None,
        trials: Trials | None = None,
        *,
        teachers: Mapping[str, nn.Module] | None = None,
        weight: float = 1.0,
        epochs: int | None = None,
    ) -> None:
        super().__init__(task_loss)
        if not 0 <= weight < float("inf") or (epochs is not None and epochs < 1):
            raise ValueError(
                "Expected `weight` not negative and finite, and `epochs` of at least 1, "
                f"but got {weight} and {epochs}."
            )
        if weight > 0 and teachers is None and (heads is None or trials is None):
            raise ValueError(
                "Expected `teachers`, or `heads` and `trials` to train them, but got neither."
            )
        self.weight, self.epochs, self.trials = weight, epochs, trials
        # no part of this method's state: they train teachers and are dropped
        self._teaching_heads = dict(heads or {})
        self.teachers = nn.ModuleDict(frozen(teachers or {}))
        self.register_buffer("trained", torch.tensor(teachers is not None))

    def prepare(self, binding: Binding) -> None:
        """Refuse other names than the encoders'; make room for teachers to be trained."""
        if self.weight == 0:
            return
        given = list(self.teachers or self._teaching_heads)
        if given != binding.names:
            raise ValueError(
                f"Expected one teacher or head per encoder, {binding.names}, but got {given}. "
                "Give them by the encoders' names, in their order."
            )
        if not self.teachers:
            self.teachers.update(frozen(binding.encoders))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; teachers stay in eval mode."""
        super().train(mode)
        self.teachers.eval()
        return self

    def start_epoch(self, epoch: int) -> None:
        """Train the teachers, once, before the first epoch."""
        super().start_epoch(epoch)
        if self.weight == 0 or bool(self.trained):
            return
        assert self.trials is not None
        heads = frozen(self._teaching_heads)  # copies, which nobody keeps
        train_teachers(self.trials, dict(self.teachers.items()), heads, self.epochs)
        self.trained.fill_(True)

    def loss(self, step: Step) -> Tensor:
        """Task loss plus the weighted sum of the distances."""
        if self.weight == 0:
            return step.loss
        if self.calls == 1 and not bool(self.trained):
            raise RuntimeError(
                "Expected teachers to be trained before their students, but no epoch was started. "
                "Attach a BalanceHandler, call `start_epoch(1)`, or give `teachers`."
            )
        distances = []
        for name, teacher in self.teachers.items():
            if step.presence is not None and name in step.presence.absent:
                distances.append(step.loss.new_zeros(()))
                continue
            args, kwargs = step.inputs[name]
            with torch.no_grad():
                taught = teacher(*args, **kwargs)
            own, taught = samples_with(step.features[name], taught, name, step.presence)
            distances.append(feature_distance(own, taught))
        stacked = torch.stack(distances)
        self.readings = {"distance": stacked.detach()}
        return step.loss + self.weight * stacked.sum()
