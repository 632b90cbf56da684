"""Short trainings of copies, for methods that measure or prepare before they balance."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cggm.binding import recorded, unwrap
from cggm.containers import Features
from cggm.distributed import mean_over_ranks, sum_over_ranks
from cggm.heads import Criterion, OptimizerFactory

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
    ) -> None:
        self.network = network
        self.task_loss = task_loss
        self.train = train
        self.valid = valid
        self.optimizer = optimizer
        self.seed = seed

    def copy(self, heads: Mapping[str, nn.Module]) -> "Trial":
        """A copy of the network as it is now, with copies of heads.

        Args:
            heads: Modality name to module that takes what the encoder returns.
        """
        return Trial(self, deepcopy(unwrap(self.network)), deepcopy(nn.ModuleDict(dict(heads))))


class Trial:
    """One copy of a network and of heads, see :meth:`Trials.copy`.

    Attributes:
        network: The copy.
        heads: Copies of the heads.
        encoders: Encoders of the copy.
    """

    def __init__(self, trials: Trials, network: nn.Module, heads: nn.ModuleDict) -> None:
        self.trials = trials
        self.network = network
        self.heads = heads
        encoders = network.encoders
        assert isinstance(encoders, nn.ModuleDict)
        self.encoders = encoders

    def fit(self, weights: Tensor, epochs: int) -> None:
        """Train the copy on a weighted sum of its branches' losses.

        Heads learn from features that are not detached. With a weight for each head and none for
        the fused prediction, the modalities do not meet and every one is trained as if alone.

        Args:
            weights: Of each modality's loss in order, then of the fused prediction's, ``(M + 1,)``.
            epochs: Passes over the training data.
        """
        parameters = [*self.network.parameters(), *self.heads.parameters()]
        parameters = [p for p in parameters if p.requires_grad]
        optimizer = self.trials.optimizer(parameters)
        device = parameters[0].device
        devices = [device] if device.type == "cuda" else []
        self._train(True)
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.trials.seed)
            for epoch in range(1, epochs + 1):
                for inputs, target in self.trials.train(epoch):
                    optimizer.zero_grad()
                    losses = self._losses(inputs, target)
                    chosen = weights.to(losses) != 0  # 0 times a loss that is not finite
                    (weights.to(losses)[chosen] * losses[chosen]).sum().backward()  # type: ignore[no-untyped-call]
                    _average(parameters)
                    optimizer.step()

    def losses(self) -> TrialLosses:
        """Losses of every branch as they are now."""
        self._train(False)
        return TrialLosses(self._mean(self.trials.train), self._mean(self.trials.valid))

    @torch.no_grad()
    def _mean(self, batches: Batches) -> Tensor:
        total, count = torch.zeros(()), torch.zeros(())
        for inputs, target in batches(1):
            losses = self._losses(inputs, target)
            size = len(target)
            total, count = total.to(losses) + size * losses, count.to(losses) + size
        total, count = sum_over_ranks([total, count])
        return total / count

    def _losses(self, inputs: Any, target: Any) -> Tensor:  # noqa: ANN401
        features: dict[str, Features]
        with recorded(dict(self.encoders.items())) as features:
            prediction = self.network(inputs)
        predictions = [head(features[name]) for name, head in self.heads.items()]
        losses = [self.trials.task_loss(p, target) for p in [*predictions, prediction]]
        return torch.stack(losses).float()

    def _train(self, mode: bool) -> None:
        self.network.train(mode)
        self.heads.train(mode)


def _average(parameters: Iterable[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    for gradient, mean in zip(gradients, mean_over_ranks(gradients), strict=True):
        gradient.copy_(mean)
