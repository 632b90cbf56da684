"""One of two gloo ranks in all hosts, of which Lightning starts the second, and in a bare loop."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cggm.hosts import BalanceCallback
from cggm.runs import RunRecorder, end_process
from tests.cggm.contract_hosts import EPOCHS, Session, positions
from tests.cggm.hosts.trainers import loader, module_of, quiet_trainer, torch_state, trainer_of

METHODS = ("CGGM", "GuidedHeads", "OGM")


def half(session: Session, rank: int) -> Session:
    """The same session on a rank's share of every batch."""
    session.batches = [tuple(part.chunk(2)[rank] for part in batch) for batch in session.batches]
    return session


def in_lightning(name: str, folder: Path) -> Session:
    """A training under Lightning's DDP, with a record and a checkpoint."""
    session = Session(name)
    callback = BalanceCallback(session.balancer, identify=positions)
    ranks = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    trainer = quiet_trainer(callbacks=[callback], **ranks)
    half(session, trainer.local_rank)
    with RunRecorder(session.balancer, folder / name, curves=False):
        trainer.fit(module_of(session), loader(session))
    assert trainer.world_size == 2
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return session


def in_a_bare_loop(name: str) -> Session:
    """The same without a host."""
    session = half(Session(name), dist.get_rank())
    return epochs(session, DistributedDataParallel(session.network), session.optimizer)


def in_accelerate(name: str) -> Session:
    """The same under Accelerate."""
    session = half(Session(name), dist.get_rank())
    network, optimizer = Accelerator(cpu=True).prepare(session.network, session.optimizer)
    assert isinstance(network, DistributedDataParallel)
    return epochs(session, network, optimizer)


def epochs(session: Session, network: torch.nn.Module, optimizer: Optimizer) -> Session:
    """A loop over a rank's batches."""
    session.balancer.bind(network)
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            session.balancer.identify(positions(batch))
            optimizer.zero_grad()
            session.balancer(network(batch[0]), batch[1]).backward()
            optimizer.step()
        session.balancer.end_epoch(epoch)
    return session


def in_trainer(name: str, folder: Path) -> Session:
    """The same in Hugging Face's trainer, which would deal out batches that are halves already."""
    session = half(Session(name), dist.get_rank())
    trainer = trainer_of(session, folder / "trainer")
    rows = [{"inputs": inputs, "labels": target} for inputs, target in session.batches]
    trainer.get_train_dataloader = lambda: rows
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return session


def main(folder: Path) -> None:
    """All methods in all hosts."""
    torch.set_num_threads(1)
    for name in METHODS:
        found = {"lightning": in_lightning(name, folder), "bare": in_a_bare_loop(name)}
        rank = str(dist.get_rank())  # which torchrun would say
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        found |= {"accelerate": in_accelerate(name), "trainer": in_trainer(name, folder)}
        states = {host: torch_state(session) for host, session in found.items()}
        torch.save(states, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.barrier()  # the files of both are there
    end_process(0)
