"""A training of your own that goes on after kill -9, with the same bits; data are SIMULATED.

python examples/resumable.py RUN    # interrupt it as you like, then say the same again
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cggm import CGGM, BalanceHandler, runs

MODALITIES, WIDTH, CLASSES = ("clean", "noisy"), 16, 4


class Network(nn.Module):
    """One encoder per modality, a fusing layer with dropout and ``output_layer``."""

    def __init__(self) -> None:
        super().__init__()
        layers = {n: nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU()) for n in MODALITIES}
        self.encoders = nn.ModuleDict(layers)
        self.fusion = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1))
        self.output_layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:  # noqa: D102
        pairs = zip(self.encoders.values(), inputs.unbind(1), strict=True)
        return self.output_layer(self.fusion(torch.cat([e(x) for e, x in pairs], dim=1)))


class Head(nn.Sequential):
    """Judges one encoder; its ``output_layer`` has the shape of the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(WIDTH, CLASSES)


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, the score of a head and of a validation."""
    return (prediction.argmax(1) == target).float().mean()


runs.seed_everything(0)
target, centers = torch.randint(CLASSES, (768,)), torch.randn(CLASSES, 6)
noise = torch.randn(768, 2, 6) * torch.tensor([0.5, 2.0])[:, None]
data = list(zip(centers[target][:, None] + noise, target, strict=True))
held_out = [torch.stack(part) for part in zip(*data[512:], strict=True)]
loader = DataLoader(data[:512], batch_size=32, shuffle=True)
network = Network()
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
trainer = create_supervised_trainer(network, optimizer, nn.CrossEntropyLoss())
heads = {name: Head() for name in MODALITIES}
adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
balancer = CGGM(heads, nn.CrossEntropyLoss(), accuracy, head_optimizer=adam)
validate = lambda: {"accuracy": float(accuracy(network.eval()(held_out[0]), held_out[1]))}  # noqa: E731
runs.register_metrics(runs.Metric("accuracy", "accuracy", "higher"))

with TemporaryDirectory() as scratch:
    folder = runs.RunFolder(Path(sys.argv[1] if len(sys.argv) > 1 else scratch) / "run")
    session = runs.Session(
        trainer,
        runs.TrainingParts(network, optimizer),
        runs.TrainingData(loader),
        folder,
        runs.SessionOptions(max_epochs=6, save_minutes=0.002),
        balance=BalanceHandler(balancer, network),
        validation=runs.Validation(validate, selects="accuracy"),
    )
    session.run()
    for line in map(json.loads, folder.balance.read_text().splitlines()[15::16]):
        for name in MODALITIES:
            print(f"{name}  score {line['score'][name]:.2f}  B {line['term'][name]:.2f}")
