"""Balancing of a training on sequences: the method, its heads, their scores and trial copies."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm.balancer import Balancer
from cggm.errors import MethodRefusal, UserError
from cggm.methods import bound_balancer
from cggm.trials import Course, Trials
from cggm_cls.data import TaskData
from cggm_cls.networks import SequenceNetwork, sequence_heads
from cggm_cls.training.batches import shuffled_batches
from cggm_cls.training.config import AdamConfig, SequenceConfig


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


def sequence_balancer(config: SequenceConfig, network: SequenceNetwork, data: TaskData) -> Balancer:
    """The method of a configuration, bound to the network.

    Args:
        config: The configuration.
        network: The network, on its device.
        data: The splits; methods that train copies of the network judge them on the validation
            split.

    Raises:
        UserError: If the method, or a setting of it, is unknown or cannot serve.
    """
    _check_absences(config, data)
    regression = data.classes is None
    task_loss = nn.L1Loss() if regression else nn.CrossEntropyLoss()
    rates = config.optimizer
    balancer = bound_balancer(
        config.balancer.name,
        config.balancer.settings,
        {
            "task_loss": lambda: task_loss,
            "heads": partial(
                sequence_heads,
                network,
                layers=config.balancer.head_layers,
                dropout=config.balancer.head_dropout,
            ),
            "score": lambda: negative_mae if regression else accuracy,
            "head_optimizer": lambda: adam_factory(rates, rates.head_lr, rates.head_weight_decay),
            "samples": lambda: len(data.train),
            "trials": lambda: _trials(config, network, data, task_loss),
            "held_out": lambda: _trials(config, network, data, task_loss),
        },
        network,
    )
    if data.absences and type(balancer) is not Balancer and not balancer.serves_absence:
        raise MethodRefusal(
            f"{config.balancer.name} cannot leave out a modality that samples lack.",
            "Choose a method that can, such as CGGM, or leave such samples out.",
        )
    return balancer


def _check_absences(config: SequenceConfig, data: TaskData) -> None:
    """Refuse what takes the empty sequences of absent modalities for data."""
    if data.absences and config.gradients:
        raise UserError(
            "Expected samples with all modalities for --gradients, but some lack one.",
            "Do without the option, or leave such samples out.",
        )


def adam_factory(
    config: AdamConfig, lr: float, weight_decay: float
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Maker of the optimizer of a configuration, for the network or for heads.

    Args:
        config: Says which optimizer.
        lr: Learning rate.
        weight_decay: Weight decay.
    """
    kind = Adam if config.name == "adam" else AdamW
    return partial(kind, lr=lr, weight_decay=weight_decay, fused=True)


def _trials(
    config: SequenceConfig, network: SequenceNetwork, data: TaskData, task_loss: nn.Module
) -> Trials:
    if data.absences:
        raise MethodRefusal(
            f"{config.balancer.name} trains copies of the network, which are not told what samples "
            "lack, but some lack a modality.",
            "Choose another method, or leave such samples out.",
        )
    device = next(network.parameters()).device
    batches = partial(shuffled_batches, size=config.batch_size, seed=config.seed, device=device)
    return Trials(
        network,
        task_loss,
        partial(batches, dataset=data.train),
        partial(batches, dataset=data.valid),
        adam_factory(config.optimizer, config.optimizer.lr, config.optimizer.weight_decay),
        seed=config.seed,
        course=Course(
            config.max_epochs,
            lambda optimizer, _: ReduceLROnPlateau(optimizer, patience=config.optimizer.patience),
        ),
    )
