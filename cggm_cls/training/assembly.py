"""A training on sequences: assembled first, then run to its test metrics."""

from operator import itemgetter

import torch
from ignite.engine import Engine
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm.distributed import is_first_rank, wait_for_ranks
from cggm.errors import UserError
from cggm.handlers import BalanceHandler
from cggm.runs import (
    RunFolder,
    Session,
    TrainingData,
    TrainingParts,
    Validation,
    check_ranks_agree,
    replicated,
    seed_everything,
)
from cggm_cls.data import Batch, TaskData, move
from cggm_cls.training.balancing import adam_factory, sequence_balancer
from cggm_cls.training.batches import sequence_batches, sequence_loader
from cggm_cls.training.config import SequenceConfig
from cggm_cls.training.evaluation import predict
from cggm_cls.training.summary import announce_sequences, conclude_sequences, numbers


class SequenceTraining:
    """One training on sequences.

    Building it seeds everything and refuses what does not fit; :meth:`run` is what writes. Ranks
    that torchrun started share each batch and the validation; the first one writes and tests.

    Args:
        config: The configuration.
        run: Folder that it writes to, once it runs; a run in it goes on from its last checkpoint.
        data: The splits; of the test split nothing is read before the training is over.
        device: Where to compute.

    Raises:
        UserError: If the method, the number of samples or the checkpoint does not fit.
    """

    def __init__(
        self, config: SequenceConfig, run: RunFolder, data: TaskData, device: torch.device
    ) -> None:
        check_ranks_agree({"configuration": repr(config), "data": data.digest})
        seed_everything(config.seed)
        self.config, self.folder, self.data, self.device = config, run, data, device
        self.network = config.network.build(data.widths, data.classes).to(device)
        self.balancer = sequence_balancer(config, self.network, data)
        rates = config.optimizer
        self.optimizer = adam_factory(rates, rates.lr, rates.weight_decay)(
            self.network.parameters()
        )
        self.trainer = Engine(self._step)
        loader = sequence_loader(config, data, sequence_batches(config, data))
        schedule = ReduceLROnPlateau(self.optimizer, patience=rates.patience)
        self.session = Session(
            self.trainer,
            TrainingParts(self.network, self.optimizer, schedule),
            TrainingData(loader, data.digest, itemgetter("ids"), data.simulated),
            run,
            config,
            balance=BalanceHandler(self.balancer),
            validation=Validation(
                lambda: self.validate(),
                self._selects,
                schedules="loss" if rates.plateau == "loss" else None,
            ),
        )
        self._replica = replicated(self.network)

    def run(self) -> None:
        """Train, then evaluate the selected weights on the test split, once."""
        session, data = self.session, self.data
        session.prepare_folder()
        if is_first_rank():
            announce_sequences(self.config, self.folder, self.network, data, done=session.done)
        session.run()
        if is_first_rank():
            conclude_sequences(self.config, session, self.network, self.balancer, data)
        wait_for_ranks()

    def _step(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        self._replica.train()
        inputs = move(batch["inputs"], self.device)
        self.balancer.identify(batch["positions"].to(self.device))
        if self.data.absences:
            self.balancer.present({n: x.mask.any(1) for n, x in batch["inputs"].items()})
        self.optimizer.zero_grad()
        loss: Tensor = self.balancer(self._replica(inputs), batch["target"].to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        engine.state.output = {"loss": loss.detach()}  # type: ignore[assignment]
        self.session.guard.check()  # before clipping, which spreads what is not finite
        self.balancer.finish_gradients()
        if self.config.optimizer.clip_norm:
            clip_grad_norm_(self._replica.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        return {"loss": loss.detach()}

    @property
    def _selects(self) -> str:
        """Name of the metric that selects the checkpoint."""
        return "mae" if self.data.classes is None else "acc"

    def validate(self) -> dict[str, float | None]:
        """Metrics of the validation split; every rank has to call it."""
        data = self.data
        size = self.config.batch_size
        prediction = predict(self.network, data.valid, batch_size=size, sharded=True)
        metrics = numbers(data.measure(prediction.numpy(), data.valid.target.numpy()))
        if self._selects not in metrics:  # of a measure that the data set brought
            raise UserError(
                f"Expected {self._selects}, which selects the checkpoint, among the metrics of the "
                f"data, but got {', '.join(metrics) or 'none'}.",
                "Add it to what own_measure returns.",
            )
        if self.config.optimizer.plateau == "loss":
            metrics["loss"] = float(self.balancer.task_loss(prediction, data.valid.target))
        # The first one is what curves show.
        return {self._selects: metrics[self._selects], **metrics}
