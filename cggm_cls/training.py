"""A training on sequences: assembled first, then run to its test metrics."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from cggm.balancer import Balancer
from cggm.errors import UserError
from cggm.handlers import BalanceHandler, BalanceRecorder
from cggm.runs.batches import EndlessBatches, EpochSampler
from cggm.runs.config import write_config
from cggm.runs.epochs import EpochEnd
from cggm.runs.folder import RunFolder
from cggm.runs.progress import TrainingProgress
from cggm.runs.seeds import seed_everything
from cggm_cls.balancing import build_balancer, factory
from cggm_cls.config import SequenceConfig
from cggm_cls.evaluation import evaluate
from cggm_cls.networks import MultimodalTransformer
from cggm_cls.sequences import Batch, TaskData, move
from cggm_cls.summary import describe, finish, numbers


class SequenceTraining:
    """One training on sequences.

    Building it seeds everything and refuses what does not fit; :meth:`run` is what writes.

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
        seed_everything(config.seed)
        self.config = config
        self.folder = run
        self.data = data
        self.resume = resume
        self.network = build_network(config, data).to(device)
        self.balancer = balancer = build_balancer(config, self.network, data)
        rates = config.optimizer
        optimizer = factory(rates, rates.lr, rates.weight_decay)(self.network.parameters())
        plateau = ReduceLROnPlateau(optimizer, patience=config.optimizer.patience)
        end = EpochEnd(
            run,
            self.network,
            optimizer,
            balancer,
            validate=self._validate,
            score=partial(_selection_score, classes=data.classes),
            every=config.validate_every,
            keep_last=config.keep_last,
            digest=data.digest,
            plateau=plateau,
        )
        self.done = end.restore() if resume else 0
        self.trainer = Engine(
            partial(
                _step,
                network=self.network,
                balancer=balancer,
                optimizer=optimizer,
                clip_norm=config.optimizer.clip_norm,
                device=device,
            )
        )
        BalanceHandler(balancer).attach(self.trainer)
        BalanceRecorder(balancer, run.balance, every=config.balancer.record_every).attach(
            self.trainer
        )
        TrainingProgress(optimizer).attach(self.trainer)
        end.attach(self.trainer)

    def run(self) -> None:
        """Train, then evaluate the selected weights on the test split, once."""
        config, folder = self.config, self.folder
        loader = _loader(config, self.data, first_epoch=self.done + 1)
        if not self.resume:
            folder.make()
        write_config(config, folder.config)
        folder.write_environment()
        describe(config, folder, self.network, self.data, done=self.done)
        if self.done < config.max_epochs:
            self._continue(len(loader.batch_sampler), loader)  # type: ignore[arg-type]
        finish(config, folder, self.network, self.balancer, self.data)

    def _continue(self, steps: int, loader: DataLoader[Batch]) -> None:
        state = self.trainer.state
        state.epoch, state.iteration = self.done, self.done * steps
        # Without these two Ignite takes the run for a new one and begins at epoch 1.
        state.max_epochs, state.epoch_length = self.config.max_epochs, steps
        self.trainer.run(loader)

    def _validate(self) -> dict[str, float | None]:
        data = self.data
        metrics = numbers(
            evaluate(self.network, data.valid, data.classes, batch_size=self.config.batch_size)
        )
        selects = "mae" if data.classes is None else "acc"
        return {selects: metrics[selects], **metrics}  # the first one is what curves show


def build_network(config: SequenceConfig, data: TaskData) -> MultimodalTransformer:
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
    network: MultimodalTransformer,
    balancer: Balancer,
    optimizer: Optimizer,
    clip_norm: float,
    device: torch.device,
) -> dict[str, Tensor]:
    network.train()
    inputs = move(batch["inputs"], device)
    balancer.identify(batch["positions"].to(device))
    optimizer.zero_grad()
    loss: Tensor = balancer(network(inputs), batch["target"].to(device))
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm:
        clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
    return {"loss": loss.detach()}


def _loader(config: SequenceConfig, data: TaskData, first_epoch: int) -> DataLoader[Batch]:
    if len(data.train) < 1:
        raise UserError("Expected training samples, but got none.", "Give data that has some.")
    sampler = EpochSampler(len(data.train), seed=config.seed)
    return DataLoader(
        replace(data.train, seed=config.seed),
        batch_sampler=EndlessBatches(sampler, config.batch_size, first_epoch=first_epoch),
        collate_fn=_as_it_is,
        # Without its own generator a loader draws from the one of dropout, once per start.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401
    return batch


def _selection_score(metrics: Mapping[str, Any], *, classes: int | None) -> float:
    """Validation accuracy, or the negated mean absolute error."""
    return float(metrics["acc"] if classes else -metrics["mae"])
