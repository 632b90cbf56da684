"""A training on sequences: assembled first, then run to its test metrics."""

import logging
from functools import partial
from operator import itemgetter

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm.balancer import Balancer
from cggm.distributed import is_first_rank, wait_for_ranks
from cggm.handlers import BalanceHandler, BalanceRecorder
from cggm.runs import (
    Epochs,
    Journal,
    NonFiniteGuard,
    Replicas,
    RunFolder,
    TrainingProgress,
    check_alike,
    replicated,
    seed_everything,
    selection_score,
    write_config,
)
from cggm_cls.data import Batch, TaskData, move
from cggm_cls.networks import MultimodalTransformer
from cggm_cls.training.balancing import adam_factory, sequence_balancer
from cggm_cls.training.batches import sequence_batches, sequence_loader
from cggm_cls.training.config import SequenceConfig
from cggm_cls.training.evaluation import evaluate
from cggm_cls.training.summary import describe, finish, numbers


class SequenceTraining:
    """One training on sequences.

    Building it seeds everything and refuses what does not fit; :meth:`run` is what writes. Ranks
    that torchrun started share each batch and the validation; the first one writes and tests.

    Args:
        config: The configuration.
        run: Folder that it writes to, once it runs.
        data: The splits; of the test split nothing is read before the training is over.
        device: Where to compute.
        resume: Whether to continue from the run's last checkpoint.

    Raises:
        UserError: If the method, the number of samples or the checkpoint does not fit.
    """

    def __init__(
        self,
        config: SequenceConfig,
        run: RunFolder,
        data: TaskData,
        device: torch.device,
        *,
        resume: bool = False,
    ) -> None:
        check_alike({"configuration": repr(config), "data": data.digest})
        seed_everything(config.seed)
        self.config = config
        self.folder = run
        self.data = data
        self.resume = resume
        self.network = sequence_network(config, data).to(device)
        self.balancer = balancer = sequence_balancer(config, self.network, data)
        rates = config.optimizer
        optimizer = adam_factory(rates, rates.lr, rates.weight_decay)(self.network.parameters())
        recorder = BalanceRecorder(balancer, run.balance, every=config.balancer.record_every)
        self._batches = sequence_batches(config, data)
        self.epochs = Epochs(
            Journal(run, config),
            self.network,
            optimizer,
            balancer,
            recorder,
            validate=self._validate,
            score=partial(selection_score, name=self._selects),
            every=config.validate_every,
            max_epochs=config.max_epochs,
            steps=len(self._batches),
            keep_last=config.keep_last,
            save_minutes=config.save_minutes,
            digest=data.digest,
            plateau=ReduceLROnPlateau(optimizer, patience=config.optimizer.patience),
        )
        if resume:
            self._batches.skip(self.epochs.restore().iteration)
        self.done = self.epochs.done
        guard = NonFiniteGuard(
            self.network,
            optimizer,
            balancer,
            names=itemgetter("ids"),
            save=self.epochs.keep,
            skip=config.skip_nonfinite,
        )
        self.trainer = Engine(
            partial(
                _step,
                network=replicated(self.network),
                balancer=balancer,
                optimizer=optimizer,
                guard=guard,
                clip_norm=config.optimizer.clip_norm,
                device=device,
            )
        )
        self._attach_handlers(optimizer, guard, recorder)

    def run(self) -> None:
        """Train, then evaluate the selected weights on the test split, once."""
        config, folder = self.config, self.folder
        if is_first_rank():
            if not self.resume:
                folder.make()
            write_config(config, folder.config)
            folder.write_environment()
            describe(config, folder, self.network, self.data, done=self.done)
        loader = sequence_loader(config, self.data, self._batches)
        self.epochs.run(self.trainer, partial(self.trainer.run, loader))
        if is_first_rank():
            finish(config, folder, self.network, self.balancer, self.data)
        wait_for_ranks()

    def _attach_handlers(
        self, optimizer: Optimizer, guard: NonFiniteGuard, recorder: BalanceRecorder
    ) -> None:
        """Let everything follow the training, in the order in which it acts after a step."""
        trainer, balancer = self.trainer, self.balancer
        trainer.logger.setLevel(logging.CRITICAL)  # Ignite repeats the error that it raises
        BalanceHandler(balancer).attach(trainer)
        guard.attach(trainer)
        Replicas(self.network, balancer, self.config.seed).attach(trainer)
        recorder.attach(trainer)
        TrainingProgress(optimizer, modalities=balancer.binding.names).attach(trainer)
        self.epochs.attach(trainer)

    @property
    def _selects(self) -> str:
        """Name of the metric that selects the checkpoint."""
        return "mae" if self.data.classes is None else "acc"

    def _validate(self) -> dict[str, float | None]:
        data = self.data
        size = self.config.batch_size
        metrics = numbers(
            evaluate(self.network, data.valid, data.classes, batch_size=size, sharded=True)
        )
        # The first one is what curves show.
        return {self._selects: metrics[self._selects], **metrics}


def sequence_network(config: SequenceConfig, data: TaskData) -> MultimodalTransformer:
    """The network of a configuration, for the modalities of the data."""
    return MultimodalTransformer(
        data.widths,
        data.classes,
        width=config.network.width,
        attention_heads=config.network.attention_heads,
        encoder_layers=config.network.encoder_layers,
        fusion=config.network.fusion,
        fusion_layers=config.network.fusion_layers,
        dropout=config.network.dropout,
        readout=config.network.readout,
    )


def _step(
    engine: Engine,
    batch: Batch,
    *,
    network: nn.Module,
    balancer: Balancer,
    optimizer: Optimizer,
    guard: NonFiniteGuard,
    clip_norm: float,
    device: torch.device,
) -> dict[str, Tensor]:
    network.train()
    inputs = move(batch["inputs"], device)
    balancer.identify(batch["positions"].to(device))
    optimizer.zero_grad()
    loss: Tensor = balancer(network(inputs), batch["target"].to(device))
    loss.backward()  # type: ignore[no-untyped-call]
    engine.state.output = {"loss": loss.detach()}  # type: ignore[assignment]
    guard.check()  # before clipping, which spreads what is not finite
    if clip_norm:
        clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
    return {"loss": loss.detach()}
