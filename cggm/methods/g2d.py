"""G2D: distillation from unimodal teachers, and the stronger one's encoder held still at first."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.heads import Criterion
from cggm.methods._parts import feature_distance, frozen, train_teachers
from cggm.passes import Step
from cggm.trials import Trials


class G2D(Balancer):
    r"""Gradient-guided distillation (G2D; Rakib & Bagavathi, ICCV 2025).

    Frozen teachers, each trained on its modality alone, teach the network's prediction z and its
    encoders; for the first half of the training the encoder of the strongest teacher is still:

    .. math:: L = L_{task} + \sum_m \left( \lambda_z T^2 \,
              \mathrm{KL}(\mathrm{softmax}(\hat z_m / T) \,\|\, \mathrm{softmax}(z / T))
              + \lambda_h \tfrac{1}{D_m} \lVert h_m - \hat h_m \rVert^2 \right) \tag{1}

    .. math:: s_m = \sum_b \mathrm{softmax}(\hat z_m)_{b, y_b}, \qquad
              k_m = 0 \text{ if } s_m > s_k \text{ for all } k \neq m \text{ and } e \le E,
              \text{ else } 1 \tag{2}

    with :math:`\hat h_m` and :math:`\hat z_m` the teacher's features and logits. :math:`k_m`
    scales the whole gradient of encoder m, that of (1)'s last term included. T and both weights
    are 1 as published, E is epoch 151 of 300.

    Published for two modalities and classes. Ours: three and more modalities, of which the
    strongest alone is held still; maps of classes, with the divergence averaged over places; all
    parameters of an encoder, where the published code scales those of four axes alone; nobody is
    held still where two teachers tie, or a single modality is. Teachers and their heads are trained
    before the first epoch from the network's initial encoders, for ``epochs`` epochs with the
    schedule of the training, and are part of the state. Where samples lack a modality the method
    refuses. Under accumulation :math:`s_m` is the window's so far.

    ``last_epoch`` has to be set to half of the epochs: with the published number, a shorter
    training never trains the strongest encoder, which ``bind`` cannot know.

    Do not use it where modalities tell nothing alone: the prediction is drawn to what they guess;
    nor without the memory and time of a second forward pass through every encoder. Regression has
    no logits and is refused.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        heads: Modality name to head, which takes what the encoder returns; of the teachers.
        trials: Trains the teachers.
        logits: Weight :math:`\lambda_z`, not negative.
        features: Weight :math:`\lambda_h`, not negative.
        temperature: Temperature T, positive.
        last_epoch: Last epoch E in which the strongest encoder is still; 0 for none. With both
            weights 0 that is joint training without teachers.
        epochs: Epochs that teachers are trained for; as many as the students' where not given.

    Raises:
        ValueError: If an argument is out of range, if there is nothing to train teachers with, or
            if the output layer has one class.
        RuntimeError: In the first call, if the teachers were not trained.
    """

    trained: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        heads: Mapping[str, nn.Module] | None = None,
        trials: Trials | None = None,
        *,
        logits: float = 1.0,
        features: float = 1.0,
        temperature: float = 1.0,
        last_epoch: int = 151,
        epochs: int | None = None,
    ) -> None:
        super().__init__(task_loss)
        if not 0 <= min(logits, features) <= max(logits, features) < float("inf"):
            raise ValueError(
                "Expected `logits` and `features` not negative and finite, "
                f"but got {logits} and {features}."
            )
        if not (temperature > 0 and last_epoch >= 0 and (epochs is None or epochs >= 1)):
            raise ValueError(
                "Expected `temperature` positive, `last_epoch` not negative and `epochs` of at "
                f"least 1, but got {temperature}, {last_epoch} and {epochs}."
            )
        self.logits, self.features, self.temperature = logits, features, temperature
        self.last_epoch, self.epochs, self.trials = last_epoch, epochs, trials
        self.teaches = bool(logits or features or last_epoch)
        if self.teaches and (not heads or trials is None):
            raise ValueError("Expected `heads` and `trials` to train teachers, but got neither.")
        self.teachers = nn.ModuleDict()
        self.judges = nn.ModuleDict(frozen(heads or {}) if self.teaches else {})
        self.register_buffer("trained", torch.tensor(False))

    def prepare(self, binding: Binding) -> None:
        """Refuse what has no classes; make room for teachers."""
        if not self.teaches:
            return
        if binding.late_fusion or binding.output_weight.shape[0] < 2:
            raise ValueError(
                "Expected an output layer of two or more classes, because G2D teaches by "
                "probabilities of classes. Choose another method, such as UnimodalTeacher."
            )
        if list(self.judges) != binding.names:
            raise ValueError(
                f"Expected one head per encoder, {binding.names}, but got {list(self.judges)}. "
                "Give them by the encoders' names, in their order."
            )
        if not self.teachers:
            self.teachers.update(frozen(binding.encoders))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; teachers stay in eval mode."""
        super().train(mode)
        self.teachers.eval()
        self.judges.eval()
        return self

    def start_epoch(self, epoch: int) -> None:
        """Train the teachers, once, before the first epoch."""
        super().start_epoch(epoch)
        if not self.teaches or bool(self.trained):
            return
        assert self.trials is not None
        teachers, judges = dict(self.teachers.items()), dict(self.judges.items())
        train_teachers(self.trials, teachers, judges, self.epochs)
        self.trained.fill_(True)

    def loss(self, step: Step) -> Tensor:
        """Equation (1)."""
        if not self.teaches:
            return step.loss
        if self.calls == 1 and not bool(self.trained):
            raise RuntimeError(
                "Expected teachers to be trained before their students, but no epoch was started. "
                "Attach a BalanceHandler, or call `start_epoch(1)`."
            )
        taught, said = {}, {}
        with torch.no_grad():
            for name, teacher in self.teachers.items():
                args, kwargs = step.inputs[name]
                taught[name] = teacher(*args, **kwargs)
                said[name] = self.judges[name](taught[name]).float()
        factors = self._factors(torch.stack([_confidence(z, step.target) for z in said.values()]))
        apart = torch.stack([feature_distance(step.features[n], taught[n]) for n in taught])
        own = step.prediction.float()
        divergence = torch.stack([_divergence(own, z, self.temperature) for z in said.values()])
        self.readings |= {"distance": apart.detach(), "divergence": divergence.detach()}
        # the value of the distances, and the gradient that is left of theirs
        apart = factors * apart + (1 - factors) * apart.detach()
        return step.loss + self.logits * divergence.sum() + self.features * apart.sum()

    def scales(self, step: Step) -> Tensor | None:
        """Factors k of equation (2)."""
        return self.readings["term"] if self.teaches else None

    def _factors(self, scores: Tensor) -> Tensor:
        self.window.gather(scores=scores)
        total = self.window["scores"]
        first = (total == total.max()).float()
        still = len(total) > 1 and self.clock.current <= self.last_epoch
        alone = still * (first.sum() == 1)
        self.readings = {"score": total, "term": 1 - first * alone}
        return self.readings["term"]


def _confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Summed probability of the true classes, over places its mean."""
    rows = logits.softmax(1).movedim(1, -1).flatten(0, -2)
    classes = target.flatten().long()
    known = (classes >= 0) & (classes < rows.shape[1])
    true = rows.gather(1, torch.where(known, classes, 0)[:, None])[:, 0]
    return torch.where(known, true, 0.0).sum() * len(logits) / len(rows)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's probabilities from the teacher's, the mean over samples."""
    wanted = (teacher / temperature).log_softmax(1)
    found = (student / temperature).log_softmax(1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()
