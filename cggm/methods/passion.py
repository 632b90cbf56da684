"""PASSION: self-distillation of modalities that are missing at different rates."""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, normalize

from cggm.binding import Binding, recorded
from cggm.contract import check_single
from cggm.heads import Criterion, Heads, OptimizerFactory, default_optimizer
from cggm.methods._parts import (
    DrawingBalancer,
    ModalityDraws,
    Numbers,
    features_of,
    relative_advantages,
)
from cggm.passes import Step
from cggm.scores import Score, ScoreTracker
from cggm.tensors import Features, Presence, keep_samples

_EPS = 1e-5
_LOWEST = 0.005  # probabilities of the published distillation are no smaller


class PASSION(DrawingBalancer):
    r"""Preference-aware self-distillation (PASSION; Shi et al., ACM MM 2024), for segmentation.

    Where modalities are missing in training at different rates, each is taught by the fusion of
    all: its voxels' probabilities, and the similarities of its features to the prototypes of the
    classes. Modalities that are further from the fusion than the others get more:

    .. math:: L = L_{task} + \sum_m w_m \left( [r_m > 0] \beta_m L_m
              + \lambda_k \beta_m K_m + \lambda_p [r_m > 0] P_m \right) \tag{1}

    .. math:: K_m = \frac{T^2}{C |\Omega|} \sum_{x, c} q(x, c) \log \frac{q(x, c)}{q_m(x, c)},
              \quad q = \mathrm{softmax}(\mathrm{sg}[z] / T),
              \quad q_m = \mathrm{softmax}(z_m / T) \tag{2}

    .. math:: P_m = \overline{(s_m - \mathrm{sg}[s])^2}, \quad d_m = \overline{|s_m - s|}, \quad
              s(x, c) = \cos(u(x), c_c), \quad
              c_c = \mathrm{mean}_{y(x) = c} \, u(x) \tag{3}

    .. math:: r_m = \sum_b \left( d_{bm} / \mathrm{mean}_k \, d_{bk} - 1 \right) \tag{4}

    .. math:: \beta \leftarrow \sqrt{M} \, \beta' / \lVert \beta' \rVert, \quad
              \beta'_m = \mathrm{clip}\left(\beta_m - \eta \,
              \frac{\mathrm{mean}_k \, d_k - d_m}{\mathrm{mean}_k \, d_k}, 0.1, 4 \right) \tag{5}

    :math:`z_m` is the fusion's prediction from modality m alone, u what enters the output layer,
    s over the classes that a sample has, :math:`L_m` the loss of the modality's head, and
    :math:`w_m = N / N_m` for :math:`N_m` of N samples that have it. Terms are sums over samples
    that have the modality, divided by the batch; (5) happens after each epoch, with the epoch's
    means. :math:`\beta` starts at 1; :math:`\eta` grows by 1.5 with the first epoch and every 100
    further ones; probabilities in (2) are no less than 0.005.

    Published for four modalities of BraTS that each case has or lacks for good, at rates of 0.2,
    0.4, 0.6 and 0.8: ``p`` with ``per="case"``, on RFNet, mmFormer and M2FTrans, with a decoder
    that all modalities share for :math:`L_m`. Ours: heads of each modality in its place, which
    learn from detached features by an optimizer of their own; two-dimensional images and other
    numbers of modalities (norm :math:`\sqrt M`, 2 for four); prototypes on the grid of what enters
    the output layer, by the share of each class in a place; batches of several cases. The region
    losses of RFNet and its distillation of them belong to that network and are not here.

    It takes a pass through the fusion for each modality, which moves no running statistics. What
    was taken by ``p``, and what a batch lacks by itself, is out of every term; where a batch lacks
    some, :math:`N_m` counts the samples seen so far. Under
    accumulation :math:`r_m` is the window's so far. All three weights 0, and ``p=0``, is joint
    training.

    Do not use it where the fusion itself is poor, as in the first epochs, for it is the teacher;
    nor where a modality cannot tell what the fusion tells: it is pulled to it all the same.

    Args:
        heads: Modality name to head, see :class:`cggm.methods.UnimodalLosses`.
        task_loss: ``(prediction, target)`` to a scalar, for the network and for every head.
        score: See :func:`cggm.scores.score_counts`; reported, without effect on training.
        unimodal: Weight of the heads' losses, not negative; 1 as published.
        distill: Weight :math:`\lambda_k`, not negative.
        prototypes: Weight :math:`\lambda_p`, not negative.
        temperature: Temperature T, positive.
        eta: Step size :math:`\eta`, not negative.
        growth: Factor of the step size, positive.
        growth_every: Epochs between two such factors.
        p: Probability of taking each modality from a sample; 0 for complete data.
        per: See :class:`cggm.methods.ModalityDropout`.
        subsets: See there.
        seed: Seed of the draws.
        samples: Number of samples in the training data, for ``per="case"``.
        head_optimizer: Builds the heads' optimizer from their parameters.

    Raises:
        ValueError: If an argument is out of range; in ``bind``, if the network has no ``decode`` or
            no convolutional output layer; in the first call, if the target is no map of classes.
    """

    serves_absence = True
    trains_through_heads = True
    heads: Heads
    scores: ScoreTracker
    beta: Tensor
    distances: Tensor

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        task_loss: Criterion,
        score: Score,
        *,
        unimodal: float = 1.0,
        distill: float = 0.5,
        prototypes: float = 0.1,
        temperature: float = 4.0,
        eta: float = 0.01,
        growth: float = 1.5,
        growth_every: int = 100,
        p: Numbers = 0.0,
        per: str = "case",
        subsets: str = "independent",
        seed: int = 0,
        samples: int | None = None,
        head_optimizer: OptimizerFactory = default_optimizer,
    ) -> None:
        super().__init__(task_loss)
        weights = (unimodal, distill, prototypes)
        if not (0 <= min(weights) <= max(weights) < float("inf") and eta >= 0):
            raise ValueError(
                "Expected `unimodal`, `distill`, `prototypes` and `eta` not negative and finite, "
                f"but got {weights} and {eta}."
            )
        if not (temperature > 0 and growth > 0 and growth_every >= 1):
            raise ValueError(
                "Expected `temperature`, `growth` and `growth_every` positive, "
                f"but got {temperature}, {growth} and {growth_every}."
            )
        self.draws = ModalityDraws(p, per, subsets, seed, samples)
        self.heads = Heads(heads, head_optimizer)
        self.score, self.scores = score, ScoreTracker(len(heads))
        self.weights, self.temperature = weights, temperature
        self.eta, self.growth, self.growth_every = eta, growth, growth_every
        self.register_buffer("beta", torch.ones(len(heads)))
        # of the epoch under way, by row: sums of d, samples that have the modality, samples
        self.register_buffer("distances", torch.zeros(3, len(heads)))

    def prepare(self, binding: Binding) -> None:
        """Refuse a network whose predictions are no maps of classes."""
        binding.require_decode("PASSION")
        shape = binding.output_weight.shape
        if binding.channels_last or len(shape) < 4 or shape[0] < 2:
            raise ValueError(
                "Expected a convolutional output layer of two or more classes on images or volumes,"
                f" because PASSION compares maps of classes, but got a weight of shape "
                f"{tuple(shape)}. Choose another method, such as RedCore."
            )
        super().prepare(binding)

    def start_epoch(self, epoch: int) -> None:
        """Move the weights by the epoch that ended, equation (5)."""
        if epoch != self.clock.epoch and bool((self.distances[1] > 0).all()):
            grown = self.growth ** (1 + (self.clock.current - 1) // self.growth_every)
            means = self.distances[0] / self.distances[1]
            moved = self.beta - self.eta * grown * relative_advantages(means)
            moved = moved.clamp(0.1, 4.0)
            self.beta.copy_(sqrt(len(moved)) * moved / moved.norm())
            self.distances.zero_()
        super().start_epoch(epoch)

    def loss(self, step: Step) -> Tensor:
        """Equation (1)."""
        drawn = self.draws.active and step.presence is None
        if self.draws.active:
            step = replace(step, presence=self.draws.presence(self.binding.names))
        said = self.judge(step, self.score)
        self.readings = {"score": self.scores.scores(self.window), "head_loss": said.losses}
        self.readings["weight"] = self.beta.clone()
        if not any(self.weights):
            return step.loss
        check_single(step.prediction, "PASSION")
        has = _has(step.presence, step.prediction, len(self.beta))
        distilled, apart, distances = self._taught(step)
        ahead, scale = self._gather(distances, has, drawn)
        unimodal, distill, prototypes = self.weights
        mine = [(has * x).mean(0) for x in (distilled, apart)]
        alone = self.heads.losses(step.features, step.target, self.task_loss, step.presence)
        parts = unimodal * self.beta * ahead * has.mean(0) * alone
        parts = parts + distill * self.beta * mine[0] + prototypes * ahead * mine[1]
        return step.loss + (scale * parts).sum()

    def commit(self) -> None:
        """Add the window's distances to the epoch's."""
        if "distances" in self.window:
            self.distances += self.window["distances"][:3]

    def _taught(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Distillation (2), prototypes' loss and distance (3) of each sample, ``(B, M)`` each."""
        device = step.prediction.device.type
        columns = []
        for name in self.binding.names:
            with recorded({"": self.binding.output_layer}, inputs=True) as taken:
                prediction = self.binding.decode(self._alone(name, step))
            with torch.autocast(device, enabled=False):
                teacher = step.layer_input.detach().float()
                shares = class_shares(step.target, step.prediction, teacher)
                own, theirs = (similarities(u.float(), shares) for u in (taken[""], teacher))
                kl = distillation(prediction.float(), step.prediction.float(), self.temperature)
                columns.append((kl, *_differences(own, theirs, shares)))
        distilled, apart, distances = (torch.stack(c, 1) for c in zip(*columns, strict=True))
        return distilled, apart, distances.detach()

    def _alone(self, name: str, step: Step) -> dict[str, Features]:
        """Features of one modality, of the samples that have it, and zeros."""
        given = features_of(name, step, self.binding.names)
        if step.presence is None:
            return given
        there = step.presence.masks[name].to(self.binding.device, non_blocking=True)
        return given | {name: keep_samples(given[name], there)}

    def _gather(self, distances: Tensor, has: Tensor, drawn: bool) -> tuple[Tensor, Tensor]:
        """Whether a modality is behind, equation (4), and its weight w, ``(M,)`` each."""
        mine = has * distances
        mean = mine.sum(1, keepdim=True) / has.sum(1, keepdim=True)
        behind = has * (torch.where(mean > 0, distances / mean, 1.0) - 1)
        rows = [mine.sum(0), has.sum(0), torch.ones_like(has).sum(0), behind.sum(0)]
        self.window.gather(distances=torch.stack(rows))
        total = self.window["distances"]
        self.readings |= {"distance": total[0] / total[1], "behind": total[3]}
        if drawn:
            return (total[3] > 0).float(), 1 / self.draws.shares().to(has, non_blocking=True)
        _, having, every = self.distances + total[:3]
        return (total[3] > 0).float(), torch.where(having > 0, every / having, 1.0)


def class_shares(target: Tensor, prediction: Tensor, features: Tensor) -> Tensor:
    """Share of each class in the places of features, ``(B, C, *S)``.

    Args:
        target: Classes, ``(B, *T)``; others than those of the prediction count nowhere.
        prediction: Logits, ``(B, C, *T)``.
        features: Shape ``(B, D, *S)``.

    Raises:
        ValueError: If the target is no map of classes.
    """
    expected = (len(prediction), *prediction.shape[2:])
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != expected:
        found = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"Expected integer classes of shape {expected}, as PASSION compares maps of classes, "
            f"but got {found}. Choose another method, such as RedCore."
        )
    classes = torch.arange(prediction.shape[1], device=target.device)
    indicators = (target[:, None] == classes.reshape(-1, *[1] * (target.ndim - 1))).float()
    if indicators.shape[2:] == features.shape[2:]:
        return indicators
    if features.ndim == 4:
        return adaptive_avg_pool2d(indicators, (features.shape[2], features.shape[3]))
    size = (features.shape[2], features.shape[3], features.shape[4])
    return adaptive_avg_pool3d(indicators, size)


def similarities(features: Tensor, shares: Tensor) -> Tensor:
    """Cosines of features to the prototypes of the classes, ``(B, C, S)``, equation (3).

    Args:
        features: Shape ``(B, D, *S)``.
        shares: Of the classes in each place, ``(B, C, *S)``.
    """
    vectors, weights = features.flatten(2), shares.flatten(2)
    prototypes = torch.einsum("bds,bcs->bcd", vectors, weights)
    prototypes = prototypes / (weights.sum(2, keepdim=True) + _EPS)
    unit = normalize(vectors, dim=1, eps=_EPS)
    return torch.einsum("bds,bcd->bcs", unit, normalize(prototypes, dim=2, eps=_EPS))


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of each sample's tempered probabilities from the teacher's, ``(B,)``, (2).

    Args:
        student: Logits, ``(B, C, *S)``.
        teacher: Logits, which get no gradient.
        temperature: Positive.
    """
    q = (teacher.detach() / temperature).softmax(1).clamp_min(_LOWEST)
    own = (student / temperature).softmax(1).clamp_min(_LOWEST)
    return temperature**2 * (q * (q.log() - own.log())).flatten(1).mean(1)


def _differences(student: Tensor, teacher: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square and mean size of differences of maps, over the classes of a sample, ``(B,)``."""
    there = (shares.flatten(2).sum(2) > 0).float()
    apart = (student - teacher) * there[..., None]
    count = (there.sum(1) * student.shape[2]).clamp_min(1)
    return apart.square().sum((1, 2)) / count, apart.abs().sum((1, 2)) / count


def _has(presence: Presence | None, prediction: Tensor, modalities: int) -> Tensor:
    """Which samples have which modality, 1 or 0, ``(B, M)``."""
    if presence is None:
        return torch.ones(len(prediction), modalities, device=prediction.device)
    return presence.matrix().float().to(prediction.device, non_blocking=True)
