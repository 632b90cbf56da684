"""CGGM in Lightning: a module that stays as it is, and a callback; data are SIMULATED."""

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cggm import CGGM
from cggm.hosts import BalanceCallback

CLASSES, NAMES = 4, ("text", "audio")


class Network(nn.Module):
    """An encoder for each modality, fused by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({n: nn.Linear(6, 16) for n in NAMES})
        self.output_layer = nn.Linear(32, CLASSES)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # noqa: D102
        return self.output_layer(torch.cat([self.encoders[n](inputs[n]) for n in NAMES], 1).relu())


class Classifier(LightningModule):
    """An ordinary module, with its network and its loss as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.criterion = Network(), nn.CrossEntropyLoss()

    def training_step(self, batch: tuple[dict[str, Tensor], Tensor], index: int) -> Tensor:  # noqa: D102
        return self.criterion(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Head(nn.Module):
    """Judges one modality."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(16, 32)
        self.output_layer = nn.Linear(32, CLASSES)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.output_layer(torch.relu(self.widen(features)))


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, the score of a head."""
    return (prediction.argmax(1) == target).float().mean()


def simulated_samples(count: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Samples whose class shows in both modalities, plainly in the text."""
    centers, labels = torch.randn(CLASSES, 6), torch.randint(CLASSES, (count,))
    noise = {"text": 0.5, "audio": 2.0}
    return [({n: centers[y] + s * torch.randn(6) for n, s in noise.items()}, y) for y in labels]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    module = Classifier()
    balancer = CGGM({name: Head() for name in NAMES}, module.criterion, accuracy)
    files = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {"max_epochs": 5, "accelerator": "cpu", "accumulate_grad_batches": 2}
    settings["callbacks"] = [BalanceCallback(balancer)]
    trainer = Trainer(**settings, **dict.fromkeys(files, False))
    trainer.fit(module, DataLoader(simulated_samples(512), batch_size=32))
    for name in NAMES:
        score, term = (trainer.callback_metrics[f"balance/{k}/{name}"] for k in ("score", "term"))
        print(f"{name:<5}  score {score:.2f}  B {term:.2f}")
