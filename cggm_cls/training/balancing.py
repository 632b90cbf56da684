"""What a training on sequences provides to a balancing method."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from cggm.balancer import Balancer
from cggm.methods.build import bound_balancer
from cggm.trials import Trials
from cggm_cls.data import MaskedSequence, SequenceDataset, TaskData, move
from cggm_cls.networks import MultimodalTransformer, unimodal_heads
from cggm_cls.training.config import OptimizerConfig, SequenceConfig


def negative_mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, negated so that higher is better.

    Args:
        prediction: Values, shape ``(B,)`` or ``(B, 1)``.
        target: Shape ``(B,)``.
    """
    return -(prediction.reshape(target.shape).float() - target).abs().mean()


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose greatest logit is that of their class.

    Args:
        prediction: Logits, shape ``(B, C)``.
        target: Classes, int64, shape ``(B,)``.
    """
    return (prediction.argmax(1) == target).float().mean()


Pair = tuple[dict[str, MaskedSequence], Tensor]


def build_balancer(
    config: SequenceConfig, network: MultimodalTransformer, data: TaskData
) -> Balancer:
    """The method of a configuration, bound to the network.

    Args:
        config: The configuration.
        network: The network, on its device.
        data: The splits; methods that train copies hold out the validation split.

    Raises:
        UserError: If the method, or a setting of it, is unknown or cannot serve.
    """
    regression = data.classes is None
    task_loss = nn.L1Loss() if regression else nn.CrossEntropyLoss()
    rates = config.optimizer
    return bound_balancer(
        config.balancer.name,
        config.balancer.settings,
        {
            "task_loss": lambda: task_loss,
            "heads": partial(unimodal_heads, network, layers=config.balancer.head_layers),
            "score": lambda: negative_mae if regression else accuracy,
            "head_optimizer": lambda: factory(rates, rates.head_lr, rates.head_weight_decay),
            "samples": lambda: len(data.train),
            "trials": lambda: _trials(config, network, data, task_loss),
        },
        network,
    )


def factory(
    config: OptimizerConfig, lr: float, weight_decay: float
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Parameters to the optimizer of a configuration."""
    kind = Adam if config.name == "adam" else AdamW
    return partial(kind, lr=lr, weight_decay=weight_decay, fused=True)


def training_batches(
    config: SequenceConfig, network: MultimodalTransformer, data: TaskData
) -> Iterator[Pair]:
    """The batches of one epoch on the network's device."""
    device = next(network.parameters()).device
    return _batches(1, dataset=data.train, size=config.batch_size, seed=config.seed, device=device)


def _trials(
    config: SequenceConfig, network: MultimodalTransformer, data: TaskData, task_loss: nn.Module
) -> Trials:
    device = next(network.parameters()).device
    batches = partial(_batches, size=config.batch_size, seed=config.seed, device=device)
    return Trials(
        network,
        task_loss,
        partial(batches, dataset=data.train),
        partial(batches, dataset=data.valid),
        factory(config.optimizer, config.optimizer.lr, config.optimizer.weight_decay),
        seed=config.seed,
    )


def _batches(
    epoch: int, *, dataset: SequenceDataset, size: int, seed: int, device: torch.device
) -> Iterator[Pair]:
    order = np.random.default_rng([seed, epoch]).permutation(len(dataset)).tolist()
    for start in range(0, len(order), size):
        batch = dataset.batch(order[start : start + size], epoch)
        yield move(batch["inputs"], device), batch["target"].to(device)
