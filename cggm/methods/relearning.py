"""Diagnosing and re-learning: encoders go back to their start by how badly they generalize."""

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import broadcast_from_first
from cggm.heads import Criterion
from cggm.methods._parts import frozen, sample_vectors
from cggm.passes import Step
from cggm.trials import Trials

_ITERATIONS = 300


class Relearning(Balancer):
    r"""Diagnosing & Re-learning (Wei, Li, Feng & Hu, ECCV 2024).

    How well an encoder's features separate the classes is diagnosed by clusters, on training and on
    held-out samples. A wide gap says that the encoder has memorized, or is badly learnt, and the
    wider it is, the more of its initial parameters are mixed in:

    .. math:: P = \frac1N \sum_k \max_c \, |\{ b : b \in \text{cluster } k, \, y_b = c \}| \tag{1}

    .. math:: G_m = |P_m^{train} - P_m^{val}|, \qquad \alpha_m = \tanh(\lambda G_m) \tag{2}

    .. math:: \theta_m \leftarrow \alpha_m \theta_m^0 + (1 - \alpha_m) \theta_m \tag{3}

    Clusters are K-means' of the features in eval mode, scaled to [-1, 1] column by column, as many
    as there are classes. Otherwise training is joint. As published, :math:`\lambda = 3` and this
    happens after the epochs 21, 41 and 61; (3) is of parameters, so that batch statistics and the
    optimizer's momenta stay. Published for two modalities; each encoder is diagnosed alone, so any
    number serves. Features become one vector per sample: maps are averaged over space, sequences
    over their steps.

    Ours: K-means++ seeded by ``seed``, one start, in place of scikit-learn's. Held-out data are
    what ``trials`` holds out, which then are no longer unseen. A diagnosis takes an evaluation of
    both. On several ranks the first one's share of the data decides.

    Limits: class indices ``(B,)`` and a linear output layer. A training of fewer epochs than
    ``every + 1`` is joint training. Do not use it shortly before the end, or with a learning rate
    that has decayed by then: what was mixed in is not unlearnt any more. Gaps of small held-out
    data are noise.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        trials: Gives the data.
        strength: Strength :math:`\lambda`, not negative; 0 is joint training.
        every: Epochs between two diagnoses.
        times: How many there are.
        seed: Of the clusters' first centers.

    Raises:
        ValueError: If an argument is out of range, or the task has no class for each sample.
    """

    coefficients: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        trials: Trials | None = None,
        *,
        strength: float = 3.0,
        every: int = 20,
        times: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__(task_loss)
        if not 0 <= strength < float("inf") or every < 1 or times < 0:
            raise ValueError(
                "Expected `strength` not negative and finite, `every` of at least 1 and `times` "
                f"not negative, but got {strength}, {every} and {times}."
            )
        if strength > 0 and trials is None:
            raise ValueError("Expected `trials`, whose data are looked at, but got none.")
        self.strength, self.every, self.times, self.seed = strength, every, times, seed
        self.trials = trials
        self.initial = nn.ModuleDict()
        self.register_buffer("coefficients", torch.zeros(0))

    def prepare(self, binding: Binding) -> None:
        """Refuse what has no class per sample; keep the initial encoders."""
        if self.strength == 0:
            return
        shape = None if binding.late_fusion else binding.output_weight.shape
        if shape is None or not binding.channels_last or shape[0] < 2:
            raise ValueError(
                "Expected a linear output layer of two or more classes, because features are "
                "compared with a class for each sample. Choose another method."
            )
        if not self.initial:
            self.initial.update(frozen(binding.encoders))
            self.coefficients = torch.zeros(len(binding.names))

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Diagnose, and mix initial parameters in, once the epochs for it have ended."""
        begins = epoch != self.clock.epoch
        super().start_epoch(epoch)
        number, rest = divmod(epoch - 2, self.every)
        if self.strength and begins and rest == 0 and 1 <= number <= self.times:
            gaps = self.purity(valid=False) - self.purity(valid=True)
            alphas = torch.tanh(self.strength * gaps.abs()).to(self.coefficients)
            broadcast_from_first([alphas])
            self.coefficients.copy_(alphas)
            for name, alpha in zip(self.binding.names, alphas, strict=True):
                own = self.binding.encoders[name].parameters()
                for now, start in zip(own, self.initial[name].parameters(), strict=True):
                    now.lerp_(start.to(now), alpha.to(now.dtype))

    def loss(self, step: Step) -> Tensor:
        """Task loss."""
        if self.strength:
            self.readings = {"relearnt": self.coefficients.clone()}
        return step.loss

    def purity(self, *, valid: bool) -> Tensor:
        """Purity of the clusters of each encoder's features, equation (1), ``(M,)``.

        Args:
            valid: Whether of held-out data.

        Raises:
            ValueError: If the target is not a class for each sample.
        """
        assert self.trials is not None
        trial = self.trials.copy({})
        vectors, target = trial.collect(
            self.trials.valid if valid else self.trials.train, sample_vectors
        )
        classes = self.binding.output_weight.shape[0]
        found = []
        for name in self.binding.names:
            clusters = cluster(_scaled(vectors[name]), classes, self.seed)
            found.append(cluster_purity(clusters, target))
        return torch.stack(found)


def cluster(vectors: Tensor, count: int, seed: int) -> Tensor:
    """K-means by Lloyd's iterations from centers of K-means++.

    Args:
        vectors: Shape ``(N, D)``.
        count: How many clusters; no more than there are vectors.
        seed: Of the first centers.

    Returns:
        Cluster of each vector, int64, ``(N,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(vectors), (), generator=generator))]
    while len(chosen) < min(count, len(vectors)):
        nearest = torch.cdist(vectors, vectors[chosen]).amin(1).square().cpu()
        if nearest.sum() == 0:  # fewer different vectors than clusters
            break
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
    centers, found = vectors[chosen], torch.full((len(vectors),), -1, device=vectors.device)
    for _ in range(_ITERATIONS):
        before, found = found, torch.cdist(vectors, centers).argmin(1)
        if torch.equal(before, found):
            break
        own = nn.functional.one_hot(found, len(centers)).to(vectors)
        sizes = own.sum(0)[:, None]
        centers = torch.where(sizes > 0, own.T @ vectors / sizes.clamp_min(1), centers)
    return found


def cluster_purity(clusters: Tensor, target: Tensor) -> Tensor:
    """Share of the samples that belong to the most frequent class of their cluster, a scalar.

    Args:
        clusters: Cluster of each sample, ``(N,)``.
        target: Class of each, ``(N,)``.

    Raises:
        ValueError: If the target is not a class for each sample.

    Example:
        >>> cluster_purity(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, 1, 1]))
        tensor(0.7500)
    """
    if target.shape != clusters.shape or target.is_floating_point():
        raise ValueError(
            f"Expected integer classes of shape ({len(clusters)},), but got {target.dtype} of "
            f"shape {tuple(target.shape)}. Choose another method for targets that are no classes."
        )
    table = torch.zeros(int(clusters.max()) + 1, int(target.max()) + 1, device=clusters.device)
    table.index_put_((clusters, target), torch.ones_like(clusters).float(), accumulate=True)
    return table.amax(1).sum() / len(clusters)


def _scaled(vectors: Tensor) -> Tensor:
    """Columns from -1 to 1; constant ones are -1."""
    low, high = vectors.amin(0), vectors.amax(0)
    return 2 * (vectors - low) / torch.where(high > low, high - low, 1.0) - 1
