"""Short trainings of copies, for methods that measure or prepare before they balance."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cggm.binding import InertHook, recorded
from cggm.contract import modules_of, unwrap
from cggm.distributed import broadcast_from_first, mean_over_ranks, sum_over_ranks
from cggm.heads import Criterion, OptimizerFactory
from cggm.tensors import Features

Module = TypeVar("Module", bound=nn.Module)
Batches = Callable[[int], Iterable[tuple[Any, Any]]]


@dataclass(frozen=True)
class TrialLosses:
    """Mean losses of every branch in eval mode: each modality's head, then the fused prediction.

    Attributes:
        train: On the training data, ``(M + 1,)``.
        valid: On held-out data, ``(M + 1,)``.
    """

    train: Tensor
    valid: Tensor


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
        epochs: Epochs of the training that copies are made for.
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
        epochs: int = 10,
    ) -> None:
        self.epochs = epochs
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

    def fit(self, weights: Tensor, epochs: int) -> None:
        """Train the copy on a weighted sum of its branches' losses.

        Heads learn from features that are not detached. With a weight for each head and none for
        the fused prediction, the modalities do not meet and every one is trained as if alone, by
        any optimizer that treats parameters one by one.

        Args:
            weights: Of each modality's loss in order, then of the fused prediction's, ``(M + 1,)``.
            epochs: Passes over the training data.
        """
        parameters = [*self.network.parameters(), *self.heads.parameters()]
        parameters = [p for p in parameters if p.requires_grad]
        optimizer = self.trials.optimizer(parameters)
        # 0 times a loss would be no 0 if it is not finite, and decay what it does not train
        chosen = [(k, weight) for k, weight in enumerate(weights.tolist()) if weight != 0]
        with self._apart(training=True), torch.enable_grad():
            for epoch in range(1, epochs + 1):
                for inputs, target in self.trials.train(epoch):
                    optimizer.zero_grad()
                    losses, _ = self._losses(inputs, target)
                    sum(weight * losses[k] for k, weight in chosen).backward()
                    _average(parameters)
                    optimizer.step()

    def losses(self) -> TrialLosses:
        """Losses of every branch as they are now, each sample counted once."""
        with self._apart(training=False), torch.no_grad():
            return TrialLosses(self._mean(self.trials.train), self._mean(self.trials.valid))

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
        self.network.train(training)
        self.heads.train(training)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.trials.seed)
            yield


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
