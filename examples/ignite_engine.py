"""CGGM on Ignite's own supervised trainer, and a record of what it did; data are SIMULATED."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cggm import CGGM, BalanceHandler, BalanceRecorder

MODALITIES, WIDTH, CLASSES = ("clean", "noisy"), 16, 4


class Network(nn.Module):
    """One encoder per modality, a fusing layer and ``output_layer``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU()) for name in MODALITIES}
        )
        self.fusion = nn.Sequential(nn.Linear(WIDTH * len(MODALITIES), WIDTH), nn.ReLU())
        self.output_layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:  # noqa: D102
        pairs = zip(self.encoders.values(), inputs.unbind(1), strict=True)
        features = [encoder(values) for encoder, values in pairs]
        return self.output_layer(self.fusion(torch.cat(features, dim=1)))


class Head(nn.Module):
    """Judges one encoder; its ``output_layer`` has the shape of the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.output_layer(features)


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, the score of a head."""
    return (prediction.argmax(1) == target).float().mean()


def simulated_data(samples: int) -> TensorDataset:
    """Inputs ``(B, M, 6)``: the class shows in both modalities, in the second under more noise."""
    target, centers = torch.randint(CLASSES, (samples,)), torch.randn(CLASSES, 6)
    noise = torch.randn(samples, 2, 6) * torch.tensor([0.5, 2.0])[:, None]
    return TensorDataset(centers[target][:, None] + noise, target)


torch.manual_seed(0)
network = Network()
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
trainer = create_supervised_trainer(network, optimizer, nn.CrossEntropyLoss())
heads = {name: Head() for name in MODALITIES}
balancer = CGGM(
    heads,
    task_loss=nn.CrossEntropyLoss(),
    score=accuracy,
    head_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
)
BalanceHandler(balancer, network).attach(trainer)

with TemporaryDirectory() as folder:
    record = Path(folder) / "balance.jsonl"
    BalanceRecorder(balancer, record, every=16).attach(trainer)
    trainer.run(DataLoader(simulated_data(512), batch_size=32, shuffle=True), max_epochs=6)
    for line in map(json.loads, record.read_text().splitlines()):
        score, term, norm = line["score"], line["term"], line["gradient_norm"]
        for name in MODALITIES:
            figures = f"score {score[name]:.2f}  B {term[name]:.2f}  gradient {norm[name]:.3f}"
            print(f"step {line['iteration']:<3}  {name:<5}  {figures}")
