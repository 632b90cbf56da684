"""PMR: prototypical modal rebalance."""

from itertools import islice

import torch
from torch import Tensor, nn

from cggm.balancer import Balancer
from cggm.binding import Binding
from cggm.distributed import sum_over_ranks
from cggm.heads import Criterion
from cggm.methods._parts import class_means, log_probabilities, sample_vectors
from cggm.passes import Step
from cggm.tensors import map_tensors
from cggm.trials import Trials

# Of so many batches one is looked at for prototypes, as in the paper.
_SHARE = 10


class PMR(Balancer):
    r"""Prototypical modal rebalance (Fan et al., CVPR 2023).

    The mean feature :math:`c_k^m` of each class judges modality m without parameters. The slow
    modality is drawn to its prototypes; in the first epochs the fast one's verdict is kept flat:

    .. math::
        p_m(k|x) = \mathrm{softmax}_k(-\lVert h_m - c_k^m \rVert), \qquad
        s_m = \sum_b p_m(y_b|x_b), \qquad
        \beta_m = \min(1, \max(0, \bar s_{-m} / s_m - 1))

        L = L_{task} - \alpha \sum_m \beta_m \overline{\log p_m(y)}
            - \mu [e \le E] \sum_m \bar\beta_{-m} \overline{H(p_m)}

    where :math:`-m` averages the other modalities, which for two is the paper's pair of ratios.
    More than two are our extension; one is never modulated. Before each epoch, the first included,
    a tenth of the training set is averaged in evaluation mode, every tenth batch of ``trials``;
    momentum mixes epochs. Ours: without ``trials``, the features of all training samples are
    averaged over the epoch as training makes them, so that the first step is a joint one. A class
    that no prototype was made of is judged by its mean so far, without the current window; one
    never seen is left out of the softmax, and its samples out of loss and score.

    Features become one vector per sample: maps are averaged over space, sequences over their steps.

    Limits: integer classes of shape ``(B,)`` and a linear output layer. Regression has no classes;
    a dense prediction has no one class per sample. Labels outside the classes are ignored.
    A loop of one's own must call ``start_epoch``, or prototypes stay the mean of all steps and the
    entropy term stays on. Do not use it for many classes of few samples, whose means are noise,
    where a class has several clusters, or where a modality carries no signal: it is the slowest,
    and is drawn to means that tell nothing.

    Args:
        task_loss: ``(prediction, target)`` to a scalar.
        trials: Gives the training data that prototypes are made of.
        alpha: Weight of the prototype losses, not negative; the paper takes 1 to 2.
        mu: Weight of the entropy term, not negative; the paper takes 0.001 or 0.01.
        momentum: Share of the old prototypes, in [0, 1).
        entropy_epochs: Epochs with the entropy term; the default is our choice.
        last_epoch: Last epoch with any term, after which training is joint, as in the authors' runs
            of 150 epochs; ``None`` for no end.

    Raises:
        ValueError: If an argument is out of range, or if the task has no class per sample.
    """

    epoch: Tensor

    def __init__(
        self,
        task_loss: Criterion,
        trials: Trials | None = None,
        *,
        alpha: float = 1.0,
        mu: float = 0.01,
        momentum: float = 0.2,
        entropy_epochs: int = 10,
        last_epoch: int | None = 100,
    ) -> None:
        super().__init__(task_loss)
        if not (min(alpha, mu, entropy_epochs) >= 0 and 0 <= momentum < 1):
            raise ValueError(
                "Expected `alpha`, `mu`, `entropy_epochs` not negative and `momentum` in [0, 1), "
                f"but got {alpha}, {mu}, {entropy_epochs} and {momentum}."
            )
        self.alpha, self.mu = alpha, mu
        self.momentum, self.entropy_epochs = momentum, entropy_epochs
        self.last_epoch, self.trials = last_epoch, trials
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        # by modality (C, D + 1): the last column counts samples, or is 1 for a known prototype
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}

    def prepare(self, binding: Binding) -> None:
        """Refuse what has no class per sample; move to the network's device."""
        shape = binding.output_weight.shape
        if not binding.channels_last or shape[0] < 2:
            raise ValueError(
                "Expected a linear output layer of two or more classes, because PMR needs a class "
                f"for each sample, but got a weight of shape {tuple(shape)}. Choose another method."
            )
        self._take(self.get_extra_state(), binding.device)

    def loss(self, step: Step) -> Tensor:
        """Task loss, prototype losses of slow modalities and entropies of fast ones."""
        labels = self._labels(step)
        with torch.autocast(labels.device.type, enabled=False):
            vectors = [sample_vectors(step.features[name]) for name in self.binding.names]
            losses, entropies, hits = self._judge(vectors, labels)
            weights = _imbalance(self._gather(vectors, labels, hits)[:-1])
        self.readings |= {"weight": weights, "prototype_loss": losses.detach()}
        ended = self.last_epoch is not None and self.clock.current > self.last_epoch
        if ended or (self.alpha == 0 and self.mu == 0):
            return step.loss
        flat = (_mean_of_others(weights) * entropies).sum() * (self.epoch <= self.entropy_epochs)
        return step.loss + self.alpha * (weights * losses).sum() - self.mu * flat

    def commit(self) -> None:
        """Add the window's features to the class sums of the epoch."""
        for name, part in self.window.named("sums/").items():
            self._sums[name] = self._sums[name] + part

    def start_epoch(self, epoch: int) -> None:
        """Make prototypes, of the epoch that ended if need be; told twice, it starts once."""
        super().start_epoch(epoch)
        if epoch == int(self.epoch):
            return
        self.epoch.fill_(epoch)
        sampled = self._sample(epoch)
        for name, total in (sampled or self._sums).items():
            new = class_means(total)
            old = self._means.get(name, torch.zeros_like(total))
            mixed = torch.where(old[:, -1:] > 0, torch.lerp(new, old, self.momentum), new)
            self._means[name] = torch.where(new[:, -1:] > 0, mixed, old)
            self._sums[name] = torch.zeros_like(total)

    def _sample(self, epoch: int) -> dict[str, Tensor]:
        """Class sums of a tenth of the training set in eval mode, ``(C, D + 1)`` each."""
        if self.trials is None or not (self.alpha or self.mu):
            return {}
        train = self.trials.train
        vectors, target = self.trials.copy({}).collect(
            lambda _: islice(train(epoch), 0, None, _SHARE), sample_vectors
        )
        if target.ndim != 1 or target.is_floating_point():  # which the first step refuses
            return {}
        labels = self._indicators(target)
        sums = {n: labels.T @ nn.functional.pad(v, (0, 1), value=1.0) for n, v in vectors.items()}
        return dict(zip(sums, sum_over_ranks([*sums.values()]), strict=True))

    def get_extra_state(self) -> dict[str, dict[str, Tensor]]:
        """Class sums and prototypes, whose widths the features decide."""
        return {"sums": dict(self._sums), "means": dict(self._means)}

    def set_extra_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what :meth:`get_extra_state` gave, on the balancer's device."""
        self._take(state, self.epoch.device)

    def _take(self, state: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        moved = map_tensors(lambda x: x.to(device), state)
        self._sums, self._means = moved["sums"], moved["means"]

    def _labels(self, step: Step) -> Tensor:
        """Indicators of each sample's class, ``(B, C)``."""
        target, classes = step.target, self.binding.output_weight.shape[0]
        expected = (len(step.prediction), classes)
        integers = isinstance(target, Tensor) and not (
            target.is_floating_point() or target.is_complex() or target.dtype == torch.bool
        )
        if not integers or target.shape != expected[:1] or step.prediction.shape != expected:
            found = (target.dtype, tuple(target.shape)) if isinstance(target, Tensor) else target
            raise ValueError(
                f"Expected integer classes of shape (B,) and a prediction of shape (B, {classes}), "
                "because PMR needs a class for each sample, but got the target "
                f"{found} and the prediction {tuple(step.prediction.shape)}. Choose another method."
            )
        return self._indicators(target)

    def _indicators(self, target: Tensor) -> Tensor:
        classes = torch.arange(self.binding.output_weight.shape[0], device=target.device)
        indicators: Tensor = target[:, None] == classes
        return indicators.float()

    def _judge(self, vectors: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prototype losses and entropies, ``(M,)``; summed probabilities and their number."""
        rows, seen = [], labels.new_zeros(())
        for name, vector in zip(self.binding.names, vectors, strict=True):
            blank = vector.new_zeros(labels.shape[1], vector.shape[1] + 1)
            running = class_means(self._sums.setdefault(name, blank))
            means = self._means.setdefault(name, blank)
            means = torch.where(means[:, -1:] > 0, means, running)
            known = means[:, -1] > 0
            log_p = log_probabilities(vector, means[:, :-1], known)
            p, chosen = log_p.exp(), labels * known
            seen = chosen.sum()
            loss = -(chosen * log_p).sum() / seen.clamp_min(1)
            rows.append((loss, -(p * log_p).sum(1).mean(), (chosen * p.detach()).sum()))
        losses, entropies, hits = (torch.stack(column) for column in zip(*rows, strict=True))
        return losses, entropies, torch.cat([hits, seen[None]])

    def _gather(self, vectors: list[Tensor], labels: Tensor, hits: Tensor) -> Tensor:
        """Add class sums and scores of all ranks to the window; the window's scores."""
        ones = [nn.functional.pad(v.detach(), (0, 1), value=1.0) for v in vectors]
        sums = zip(self.binding.names, ones, strict=True)
        self.window.gather(hits=hits, **{f"sums/{name}": labels.T @ one for name, one in sums})
        total = self.window["hits"]
        self.readings = {"score": total[:-1] / total[-1].clamp_min(1)}
        return total


def _mean_of_others(values: Tensor) -> Tensor:
    return (values.sum() - values) / max(values.numel() - 1, 1)


def _imbalance(scores: Tensor) -> Tensor:
    """How far each modality is behind the others, in [0, 1]; 0 where nothing is known."""
    ratio = _mean_of_others(scores) / scores
    return torch.nan_to_num(ratio - 1, nan=0.0, posinf=1.0).clamp(0, 1)
