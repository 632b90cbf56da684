"""One of two gloo ranks in Lightning, which starts the second one itself, beside a bare loop."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cggm.hosts import BalanceCallback
from cggm.runs import RunRecorder
from tests.cggm.contract_hosts import EPOCHS, Session, positions
from tests.cggm.hosts.trainers import loader, module_of, quiet_trainer, torch_state

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
    """The same without Lightning, in its process group."""
    session = half(Session(name), dist.get_rank())
    wrapped = DistributedDataParallel(session.network)
    session.balancer.bind(wrapped)
    for epoch in range(1, EPOCHS + 1):
        session.balancer.start_epoch(epoch)
        for batch in session.batches:
            session.balancer.identify(positions(batch))
            session.optimizer.zero_grad()
            session.balancer(wrapped(batch[0]), batch[1]).backward()
            session.optimizer.step()
        session.balancer.end_epoch(epoch)
    return session


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in METHODS:
        hosts = [in_lightning(method, Path(sys.argv[1])), in_a_bare_loop(method)]
        found = [torch_state(session) for session in hosts]
        torch.save(found, Path(sys.argv[1]) / f"{method}-{dist.get_rank()}.pt")
