"""One training in each host: a bare loop, an engine of one's own, Ignite's and MONAI's trainer."""

from collections.abc import Callable

import torch
from ignite.engine import Engine, create_supervised_trainer
from monai.engines import SupervisedTrainer
from torch import nn

from cggm import BalanceHandler
from tests.cggm.contract import CONTRACTS
from tests.cggm.contract_runs import batches_for, build, make

EPOCHS = 3


class Session:
    """A fresh network, its optimizer and a method, not bound yet."""

    def __init__(self, name: str) -> None:
        self.network, self.batches = make(name), batches_for(name, 2)
        self.balancer = build(name, self.network, **CONTRACTS[name].settings)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)

    def step(self, batch, index: int, accumulation: int) -> torch.Tensor:
        """One iteration, counted from 1, that calls the balancer."""
        if (index - 1) % accumulation == 0:
            self.optimizer.zero_grad()
        loss = self.balancer(self.network(batch[0]), batch[1])
        (loss / accumulation).backward()
        if index % accumulation == 0:
            self.optimizer.step()
        return loss

    def handler(self, *network: nn.Module, accumulation: int = 1) -> BalanceHandler:
        """A handler that tells samples apart."""
        return BalanceHandler(
            self.balancer, *network, accumulation_steps=accumulation, identify=positions
        )


def positions(batch) -> torch.Tensor:
    """The batches of this suite hold the same samples."""
    return torch.arange(len(batch[1]))


def bare_loop(name: str, accumulation: int) -> Session:
    """No host at all."""
    session = Session(name)
    session.balancer.bind(session.network)
    index = 0
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            index += 1
            session.balancer.identify(positions(batch))
            session.step(batch, index, accumulation)
        session.balancer.end_epoch(epoch)
    return session


def custom_engine(name: str, accumulation: int) -> Session:
    """An Ignite engine whose step calls the balancer."""
    session = Session(name)
    session.balancer.bind(session.network)
    engine = Engine(lambda e, batch: session.step(batch, e.state.iteration, accumulation).item())
    session.handler().attach(engine)
    engine.run(session.batches, max_epochs=EPOCHS)
    return session


def ignite_trainer(name: str, accumulation: int) -> Session:
    """Ignite's trainer, which closes over a loss of its own."""
    session = Session(name)
    engine = create_supervised_trainer(
        session.network,
        session.optimizer,
        session.loss,
        gradient_accumulation_steps=accumulation,
    )
    session.handler(session.network, accumulation=accumulation).attach(engine)
    engine.run(session.batches, max_epochs=EPOCHS)
    return session


def monai_trainer(name: str, accumulation: int) -> Session:
    """MONAI's trainer."""
    session = Session(name)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=session.batches,
        network=session.network,
        optimizer=session.optimizer,
        loss_function=session.loss,
        prepare_batch=lambda batch, device, non_blocking, **_: batch,
        accumulation_steps=accumulation,
        decollate=False,
    )
    session.handler().attach(trainer)
    trainer.run()
    return session


HOSTS: list[Callable[[str, int], Session]] = [custom_engine, ignite_trainer, monai_trainer]
