"""Short trainings of copies, for methods that measure or prepare before they balance."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cggm.binding import InertHook, recorded
from cggm.contract import modules_of, unwrap
from cggm.distributed import broadcast_from_first, mean_over_ranks, sum_over_ranks
from cggm.heads import Criterion, OptimizerFactory
from cggm.scores import Score, ratio_score, score_counts
from cggm.tensors import Features

Module = TypeVar("Module", bound=nn.Module)
Batches = Callable[[int], Iterable[tuple[Any, Any]]]
Schedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class TrialLosses:
    """Mean losses of every branch in eval mode: each modality's head, then the fused prediction.

    Attributes:
        train: On the training data, ``(M + 1,)``.
        valid: On held-out data, ``(M + 1,)``.
    """

    train: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Course:
    """Length and learning rate of the training that copies are made for.

    Args:
        epochs: Its epochs.
        schedule: Optimizer and number of epochs to the scheduler of such a training, for copies
            that are trained as long as it. It steps after each batch, one of a plateau after each
            epoch by the loss on held-out data. The rate stays where not given.
    """

    epochs: int = 10
    schedule: Schedule | None = None


class Trials:
    """Where methods get copies of the network to train for a while.

    Gradient blending measures how its branches generalize, teachers are trained before their
    students. Nothing of the original is touched: weights, batch statistics, gradients and random
    numbers stay as they are. Gradients are averaged over ranks.

    Args:
        network: Has ``encoders`` and ``output_layer``; may be wrapped.
        task_loss: ``(prediction, target)`` to a scalar, a mean over samples.
        train: Epoch, counted from 1, to batches of network input and target, on the device.
        valid: The same of held-out data; never the test split.
        optimizer: Builds an optimizer from parameters.
        seed: Of what draws random numbers in a copy, such as dropout.
        course: Of the training that copies are made for.
        judged: Training data as they are judged beside held-out data, without augmentation; as
            they are trained on where not given.
    """

    def __init__(
        self,
        network: nn.Module,
        task_loss: Criterion,
        train: Batches,
        valid: Batches,
        optimizer: OptimizerFactory,
        *,
        seed: int = 0,
        course: Course = Course(),
        judged: Batches | None = None,
    ) -> None:
        self.course = course
        self.judged = judged or train
        self.network = network
        self.task_loss = task_loss
        self.train = train
        self.valid = valid
        self.optimizer = optimizer
        self.seed = seed

    def copy(self, heads: Mapping[str, nn.Module]) -> "Trial":
        """A copy of the network as it is now, with copies of heads on its device.

        Args:
            heads: Modality name to module that takes what the encoder returns.
        """
        return Trial(self, unhooked_copy(unwrap(self.network)), heads)

    def score(self, heads: Mapping[str, nn.Module], score: Score) -> Tensor:
        """Score of each modality's head on held-out data, as network and heads are now, ``(M,)``.

        Args:
            heads: Modality name to module that takes what the encoder returns.
            score: See :func:`cggm.scores.score_counts`.
        """
        trial = self.copy(heads)
        rows = [score_counts(score, *said) for said in trial.said(self.valid)]
        counts = torch.stack(rows).reshape(-1, len(heads), *rows[0].shape).sum(0)
        return ratio_score(sum_over_ranks([counts])[0])


class Trial:
    """One copy of a network and of heads, see :meth:`Trials.copy`.

    Attributes:
        network: The copy.
        heads: Copies of the heads.
        encoders: Encoders of the copy.
    """

    def __init__(self, trials: Trials, network: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        self.trials = trials
        self.network = network
        self.device = next(network.parameters()).device
        self.heads = deepcopy(nn.ModuleDict(dict(heads))).to(self.device)
        broadcast_from_first(self.heads.parameters())
        self.encoders = modules_of(network, None, None, None)[0]

    def fit(self, weights: Tensor, epochs: int, *, scheduled: bool = False) -> None:
        """Train the copy on a weighted sum of its branches' losses.

        Heads learn from features that are not detached. With a weight for each head and none for
        the fused prediction, the modalities do not meet, and each has an optimizer of its own.

        Args:
            weights: Of each modality's loss in order, then of the fused prediction's, ``(M + 1,)``.
            epochs: Passes over the training data.
            scheduled: Whether the learning rate follows the schedule of a training of that length.
        """
        # 0 times a loss would be no 0 if it is not finite, and decay what it does not train
        chosen = {k: weight for k, weight in enumerate(weights.tolist()) if weight != 0}
        learners = self._learners(chosen, epochs if scheduled else 0)
        with self._apart(training=True), torch.enable_grad():
            for epoch in range(1, epochs + 1):
                for inputs, target in self.trials.train(epoch):
                    self._step(learners, chosen, inputs, target)
                if any(learner.on_plateau for learner in learners):
                    with self._apart(training=False), torch.no_grad():
                        held_out = self._mean(self.trials.valid)
                    self._set_mode(training=True)
                    for learner in learners:
                        learner.end_epoch(held_out)

    def losses(self) -> TrialLosses:
        """Losses of every branch as they are now, each sample counted once."""
        with self._apart(training=False), torch.no_grad():
            return TrialLosses(self._mean(self.trials.judged), self._mean(self.trials.valid))

    def said(self, batches: Batches) -> Iterator[tuple[Any, Any]]:
        """Prediction and target of each head in turn, batch by batch, in eval mode.

        Args:
            batches: Epoch to batches, of which the first epoch's are taken.
        """
        with self._apart(training=False), torch.no_grad():
            for inputs, target in batches(1):
                with recorded(self.encoders) as features:
                    self.network(inputs)
                yield from ((head(features[name]), target) for name, head in self.heads.items())

    def collect(
        self, batches: Batches, read: Callable[[Features], Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What each encoder returns in eval mode for all samples of this rank, and their target.

        Args:
            batches: Epoch to batches, of which the first epoch's are taken.
            read: What an encoder returns to what is kept, ``(B, ...)``.

        Returns:
            By modality, ``(N, ...)``, and the target, ``(N, ...)``.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self.encoders}
        targets = []
        with self._apart(training=False), torch.no_grad():
            for inputs, target in batches(1):
                with recorded(self.encoders) as features:
                    self.network(inputs)
                for name, rows in found.items():
                    rows.append(read(features[name]))
                targets.append(target)
        return {name: torch.cat(rows) for name, rows in found.items()}, torch.cat(targets)

    def _learners(self, chosen: Iterable[int], epochs: int) -> "list[_Learner]":
        """One for each modality, or for all that is trained where the fused prediction is."""
        names, schedule = list(self.heads), self.trials.course.schedule if epochs else None
        modules: dict[int, list[nn.Module]] = {
            k: [self.encoders[names[k]], self.heads[names[k]]] for k in chosen if k < len(names)
        }
        if len(names) in chosen:
            modules = {len(names): [self.network, self.heads]}
        learners = []
        for branch, owned in modules.items():
            parameters = [p for m in owned for p in m.parameters() if p.requires_grad]
            optimizer = self.trials.optimizer(parameters)
            follows = None if schedule is None else schedule(optimizer, epochs)
            learners.append(_Learner(branch, parameters, optimizer, follows))
        return learners

    def _step(
        self,
        learners: "list[_Learner]",
        chosen: Mapping[int, float],
        inputs: Any,  # noqa: ANN401
        target: Any,  # noqa: ANN401
    ) -> None:
        for learner in learners:
            learner.optimizer.zero_grad()
        losses, _ = self._losses(inputs, target)
        total: Any = sum(weight * losses[k] for k, weight in chosen.items())
        total.backward()
        _average(p for learner in learners for p in learner.parameters)
        for learner in learners:
            learner.step()

    def _mean(self, batches: Batches) -> Tensor:
        total = torch.zeros(len(self.heads) + 1, device=self.device)
        count = torch.zeros(1, device=self.device)
        for inputs, target in batches(1):
            losses, size = self._losses(inputs, target)
            total, count = total + size * torch.stack(losses).float(), count + size
        total, count = sum_over_ranks([total, count])
        return total / count

    def _losses(self, inputs: Any, target: Any) -> tuple[list[Tensor], int]:  # noqa: ANN401
        """Loss of every branch, and the number of samples."""
        features: dict[str, Features]
        with recorded(self.encoders) as features:
            prediction = self.network(inputs)
        predictions = [head(features[name]) for name, head in self.heads.items()]
        losses = [self.trials.task_loss(p, target) for p in [*predictions, prediction]]
        return losses, len(prediction)

    @contextmanager
    def _apart(self, *, training: bool) -> Iterator[None]:
        """Random numbers of its own, for data loaders too, and the copy's mode."""
        self._set_mode(training=training)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.trials.seed)
            yield

    def _set_mode(self, *, training: bool) -> None:
        self.network.train(training)
        self.heads.train(training)


@dataclass(frozen=True)
class _Learner:
    """What trains one branch of a copy."""

    branch: int
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    schedule: LRScheduler | None

    @property
    def on_plateau(self) -> bool:
        return isinstance(self.schedule, ReduceLROnPlateau)

    def step(self) -> None:
        self.optimizer.step()
        if self.schedule is not None and not self.on_plateau:
            self.schedule.step()

    def end_epoch(self, held_out: Tensor) -> None:
        """Tell a plateau's schedule the losses of all branches on held-out data, ``(M + 1,)``."""
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(float(held_out[self.branch]))


def unhooked_copy(module: Module) -> Module:
    """A copy without the hooks that a balancer put on the original."""
    copy = deepcopy(module)
    for part in copy.modules():
        for key, hook in list(part._forward_hooks.items()):
            if isinstance(hook, InertHook):
                del part._forward_hooks[key]
                part._forward_hooks_with_kwargs.pop(key, None)
    return copy


def _average(parameters: Iterable[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    for gradient, mean in zip(gradients, mean_over_ranks(gradients), strict=True):
        gradient.copy_(mean)
