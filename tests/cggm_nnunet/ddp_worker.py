"""One rank of nnU-Net's DDP training on a processor, which nnU-Net's own command keeps to GPUs.

Its trainer takes a process group for a sign of GPUs; device and wrapper are set right here.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module
from torch.nn.parallel import DistributedDataParallel

from cggm_nnunet import nnUNetTrainerCGGM, nnUNetTrainerJoint, nnUNetTrainerMRDUnimodalLosses
from tests.cggm_nnunet.plans import batch, make_trainer
from tests.ranks import WORLD

MAGNITUDE = "settings: {direction: null, gate: null, rho: 1.0}"
SIDES = {
    "joint": (nnUNetTrainerJoint, ""),
    "magnitude": (nnUNetTrainerCGGM, MAGNITUDE),
    "CGGM": (nnUNetTrainerCGGM, ""),
    "chain": (nnUNetTrainerMRDUnimodalLosses, ""),
}


def train(folder: Path, side: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights after three steps on this rank's share of each batch, and the last readings."""
    kind, settings = SIDES[side]
    trainer = make_trainer(kind, folder, settings=settings, initialize=False, axes=2)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    torch.manual_seed(0)
    trainer.initialize()
    trainer.network.train()
    trainer.balancing.balancer.start_epoch(1)
    for number in range(3):
        whole = batch(number, axes=2)
        parts = {"data": whole["data"].chunk(world)[rank]}
        parts["target"] = [level.chunk(world)[rank] for level in whole["target"]]
        trainer.train_step(parts)
    network = getattr(trainer.network, "module", trainer.network)
    readings = trainer.balancing.balancer.readings
    return network.state_dict() | {f"reading {name}": value for name, value in readings.items()}


def found_of_rank(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """What each trainer ends with on this rank."""
    module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    with TemporaryDirectory() as folder:
        return {side: train(Path(folder) / side, side, rank, WORLD) for side in SIDES}
