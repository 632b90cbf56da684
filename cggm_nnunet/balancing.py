"""Balancing of an nnU-Net training: the method, what it records, and what a resume needs of it."""

import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cggm import Balancer, BalanceRecorder
from cggm.contract import unwrap
from cggm.distributed import is_first_rank
from cggm.errors import MethodRefusal, UserError
from cggm.methods import build_balancer
from cggm.runs import JsonLines, RunFolder, plot_curves, write_atomically
from cggm_nnunet.judging import CoarseHead, LevelLoss, PooledDice
from cggm_nnunet.network import constant_channels
from cggm_nnunet.settings import TrainerSettings

_SHOWN = ("score", "term")


class Balancing:
    """A method bound to the network of an nnU-Net training, called in place of its loss.

    Args:
        balancer: The method, bound.
        folder: Output folder of the fold, where ``balance.jsonl`` and ``curves`` come to lie.
        every: Iterations between lines of the log.
    """

    def __init__(self, balancer: Balancer, folder: Path, *, every: int = 1) -> None:
        self.balancer = balancer
        self.run = RunFolder(folder)
        self.iterations = 0
        self._recorder = BalanceRecorder(balancer, self.run.balance, every=every)
        self._epoch: dict[str, list[Tensor]] = {name: [] for name in _SHOWN}

    def __call__(self, prediction: Any, target: Any) -> Tensor:  # noqa: ANN401
        """What is back-propagated, or in a validation the loss alone.

        Args:
            prediction: What the network returned.
            target: Label maps, a list of them under deep supervision.
        """
        # as a tuple: a list with as many levels as samples reads like one entry per sample
        loss: Tensor = self.balancer(
            prediction, tuple(target) if isinstance(target, list) else target
        )
        return loss

    def before_step(self, images: Tensor) -> None:
        """Say that a training step begins.

        Args:
            images: The batch, ``(B, M, *S)``, on the processor; a constant channel is absent.
        """
        self.iterations += 1
        self._recorder.prepare(self.iterations)
        told = ~constant_channels(images)
        told |= ~told.any(1, keepdim=True)  # nothing at all is no sample without modalities
        if self.balancer.serves_absence and not bool(told.all()):
            names = self.balancer.binding.names
            self.balancer.present(dict(zip(names, told.unbind(1), strict=True)))

    def after_step(self, epoch: int, loss: Tensor) -> None:
        """Record what the method measured in a training step.

        Args:
            epoch: The epoch, counted from 1.
            loss: What was back-propagated.
        """
        self._recorder.record(self.iterations, epoch, loss)
        for name in _SHOWN:
            if name in self.balancer.readings:
                self._epoch[name].append(self.balancer.readings[name])

    def end_epoch(self) -> dict[str, list[float]]:
        """Write the log and draw the curves.

        Returns:
            Means over the epoch by reading, one value per modality.
        """
        self._recorder.flush()
        rows = {name: torch.stack(kept).nanmean(0) for name, kept in self._epoch.items() if kept}
        self._epoch = {name: [] for name in _SHOWN}
        if is_first_rank() and self.run.balance.is_file():
            plot_curves(self.run)
        return {name: mean.tolist() for name, mean in rows.items()}

    def save(self, checkpoint: Path, epoch: int) -> None:
        """Write the method's state beside a checkpoint of nnU-Net, which holds none of it.

        Args:
            checkpoint: The checkpoint.
            epoch: Epochs trained, as the checkpoint says.
        """
        buffer = io.BytesIO()
        state = {"balancer": self.balancer.state_dict(), "iterations": self.iterations}
        torch.save(state, buffer)
        write_atomically(_state_file(checkpoint, epoch), buffer.getvalue())

    def restore(self, checkpoint: Path, epoch: int) -> None:
        """Go on from the state beside a checkpoint; later lines of the log are dropped.

        Args:
            checkpoint: The checkpoint.
            epoch: Epochs trained, as the checkpoint says.

        Raises:
            UserError: If there is no such state.
        """
        file = _state_file(checkpoint, epoch)
        if not file.is_file():
            raise UserError(
                f"Expected the state of the balancing method in {file}, but there is no such file.",
                "Copy it along with the checkpoint, or train anew without --c.",
            )
        state = torch.load(file, map_location=self.balancer.binding.device, weights_only=True)
        self.balancer.load_state_dict(state["balancer"])
        self.iterations = state["iterations"]
        if is_first_rank() and self.run.balance.is_file():
            log = JsonLines(self.run.balance)
            log.truncate_after(iteration=self.iterations)
            log.close()


def bound_balancing(
    method: str,
    settings: TrainerSettings,
    network: nn.Module,
    losses: tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]],
    score: PooledDice,
    *,
    names: list[str],
    folder: Path,
) -> Balancing:
    """Build a method for an nnU-Net training and bind it to the network.

    Args:
        method: A class of ``cggm.methods``.
        settings: Settings of the training.
        network: A :class:`cggm_nnunet.network.ModalityUNet`, with its wrappers.
        losses: nnU-Net's loss of what the network returns, and that of a single prediction.
        score: Judges heads.
        names: Modalities in the order of the channels.
        folder: Output folder of the fold.

    Raises:
        UserError: If a setting is unknown or a value out of range.
        MethodRefusal: If the method cannot serve this network.
    """
    inner: Any = unwrap(network)
    task_loss = LevelLoss(*losses)
    parts: dict[str, Callable[[], Any]] = {
        "task_loss": lambda: task_loss,
        "score": lambda: score,
        "heads": lambda: {n: CoarseHead(inner.widths, inner.output_layer) for n in names},
        "head_optimizer": lambda: partial(torch.optim.Adam, lr=settings.head_lr),
    }
    with torch.random.fork_rng(devices=[]):  # so that a method with heads draws no other patches
        balancer = build_balancer(method, settings.settings, parts)
    try:
        balancer.bind(network, encoders=dict(zip(names, inner.encoders, strict=True)))
    except ValueError as error:
        raise MethodRefusal(f"{method} cannot be used here: {error}", "Take another.") from error
    return Balancing(balancer, folder, every=settings.record_every)


def states_of(checkpoint: Path) -> Mapping[int, Path]:
    """States of the method beside a checkpoint, by the epochs trained.

    Args:
        checkpoint: The checkpoint, which need not exist.
    """
    form = re.compile(rf"{re.escape(checkpoint.stem)}\.balance_(\d+)\.pt")
    found = ((form.fullmatch(file.name), file) for file in checkpoint.parent.glob("*.pt"))
    return {int(match[1]): file for match, file in found if match}


def _state_file(checkpoint: Path, epoch: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.balance_{epoch:05d}.pt")
