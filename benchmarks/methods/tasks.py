"""The two training steps on which methods are compared: sequences, and segmentation."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.methods import sequence_step
from cggm import Balancer
from cggm.heads import OptimizerFactory
from cggm.methods import bound_balancer
from cggm.trials import Trials
from cggm_cls.networks.transformer import MultimodalTransformer, sequence_heads
from cggm_cls.training import balancing as sequence_balancing
from cggm_cls.training import config as sequence_config
from cggm_cls.training.balancing import accuracy
from cggm_seg.evaluation.regions import region_dice_counts
from cggm_seg.training import balancing as slice_balancing
from cggm_seg.training import config as slice_config
from cggm_seg.training.balancing import unimodal_heads as slice_heads
from cggm_seg.training.losses import SoftDiceCELoss

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = 4
STEPS = 32
SLICE_SIZE = 64
SAMPLES = 1284  # of the training split of CMU-MOSI
RATE = 1e-4  # what is learnt is random; all sides move the same weights

# Where a configuration does its work in some steps alone, every step of ours does it.
EVERY_STEP = {"opm": {"p_exe": 1.0, "warmup_epochs": 0}}
TRAINED_FIRST = ("GradientBlending", "UnimodalTeacher", "G2D")
TRIAL_EPOCHS = 2
EPOCHS = {"greedy_features": 2, "reconboost": 9}


@dataclass(frozen=True)
class Task:
    """Network, optimizer and batch, always the same.

    Args:
        network: In training mode.
        optimizer: Of the network.
        batch: Input and target.
        parts: What the task gives to methods, see :func:`cggm.methods.build_balancer`.
    """

    network: nn.Module
    optimizer: Optimizer
    batch: tuple[Any, Tensor]
    parts: Mapping[str, Any]

    def step(self, balancer: Balancer) -> None:
        """One training step by a balancer that is bound to the network."""
        self.optimizer.zero_grad()
        balancer.identify(torch.arange(len(self.batch[1])))
        balancer(self.network(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()

    def balancer(self, name: str) -> Balancer:
        """A method by the name of its configuration; unbound, before its first epoch."""
        settings = dict(read(name)["balancer"]["settings"]) | EVERY_STEP.get(name, {})
        kind = read(name)["balancer"]["name"]
        if isinstance(settings.get("rates"), dict):
            settings["rates"] = dict.fromkeys(self.parts["heads"](), 0.7)
        if kind in TRAINED_FIRST:
            settings["epochs"] = TRIAL_EPOCHS
        balancer = bound_balancer(kind, settings, self.parts, self.network)
        balancer.unbind()
        return balancer

    @contextmanager
    def bound(self, balancer: Balancer) -> Iterator[Balancer]:
        """The balancer on the network's hooks."""
        try:
            yield balancer.bind(self.network)
        finally:
            balancer.unbind()


def names() -> list[str]:
    """Configurations of methods that these networks can have; joint training comes first."""
    found = sorted({path.stem for path in (CONFIGS / "methods").glob("*.yaml")} - {"greedy"})
    return ["plain", *(name for name in found if name != "plain")]


def read(name: str) -> dict[str, Any]:
    """A method's configuration."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / "methods" / f"{name}.yaml").read_text())
    return content


def fusion_of(name: str) -> str:
    """What a configuration fuses."""
    fusion: str = read(name).get("network", {}).get("fusion", "features")
    return fusion


def sequence_task(fusion: str, batch: int = 64) -> Task:
    """Classification by the network for sequences at the paper's size for IEMOCAP."""
    torch.manual_seed(0)
    network = MultimodalTransformer(
        sequence_step.WIDTHS,
        CLASSES,
        encoder_layers=4,
        fusion=fusion,  # type: ignore[arg-type]
        fusion_layers=2,
    )
    options = argparse.Namespace(steps=STEPS, batch=batch)
    inputs, _ = sequence_step.make_batch(options)
    rates = sequence_config.AdamConfig()
    make = partial(sequence_balancing.adam_factory, rates)
    loss, pair = nn.CrossEntropyLoss(), (inputs, torch.randint(0, CLASSES, (batch,)))
    heads = partial(sequence_heads, network)
    parts = {"heads": heads, "score": lambda: accuracy}
    return _task(network, pair, loss, make(RATE, 0.0), make(rates.head_lr, 0.0), parts)


def slice_task(fusion: str, batch: int = 8) -> Task:
    """Segmentation by the network of the demo cohort."""
    torch.manual_seed(0)
    demo = yaml.safe_load((CONFIGS / "brats" / "demo.yaml").read_text())
    network = slice_config.NetworkConfig(**demo["network"] | {"fusion": fusion}).build()
    size = (batch, SLICE_SIZE, SLICE_SIZE)
    images, labels = torch.randn(batch, 4, *size[1:]), torch.randint(0, CLASSES, size)
    rates = slice_config.SgdConfig(**demo["optimizer"])
    make = partial(slice_balancing.sgd_factory, rates)
    loss, heads = SoftDiceCELoss(), partial(slice_heads, network)
    parts = {"heads": heads, "score": lambda: region_dice_counts}
    return _task(network, (images, labels), loss, make(RATE), make(rates.head_lr), parts)


TASKS = {"sequences": sequence_task, "segmentation": slice_task}


def _task(
    network: nn.Module,
    batch: tuple[Any, Tensor],
    loss: nn.Module,
    optimizer: OptimizerFactory,
    head_optimizer: OptimizerFactory,
    parts: dict[str, Any],
) -> Task:
    def batches(epoch: int) -> list[tuple[Any, Tensor]]:
        return [batch]

    parts |= {
        "task_loss": lambda: loss,
        "head_optimizer": lambda: head_optimizer,
        "samples": lambda: SAMPLES,
        "trials": lambda: Trials(network, loss, batches, batches, optimizer),
        "held_out": lambda: None,
    }
    return Task(network.train(), optimizer(network.parameters()), batch, parts)
