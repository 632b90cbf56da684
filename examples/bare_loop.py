"""CGGM in a bare loop, on a network that names its parts in its own way; data are SIMULATED."""

from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from cggm import CGGM
from cggm.runs import RunRecorder

CLASSES = 4


class Network(nn.Module):
    """Text and audio, fused by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.text_branch = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16))
        self.audio_branch = nn.GRU(6, 16, batch_first=True)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, text: Tensor, audio: Tensor) -> Tensor:  # noqa: D102
        steps, _ = self.audio_branch(audio)
        return self.classifier(torch.relu(self.text_branch(text) + steps[:, -1]))


class TextHead(nn.Module):
    """Takes what the text branch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(16, CLASSES)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.output_layer(features)


class AudioHead(TextHead):
    """Takes what the audio branch returns, the pair of a GRU."""

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:  # noqa: D102
        return self.output_layer(features[0][:, -1])


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes, the score of a head."""
    return (prediction.argmax(1) == target).float().mean()


def simulated_batch(centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text ``(B, 6)``, audio ``(B, 5, 6)`` and the class that shows in both."""
    target = torch.randint(CLASSES, (32,))
    text = centers[target] + 0.5 * torch.randn(32, 6)
    audio = centers[target][:, None] + 2.0 * torch.randn(32, 5, 6)
    return text, audio, target


torch.manual_seed(0)
network, centers = Network(), torch.randn(CLASSES, 6)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
heads = {"text": TextHead(), "audio": AudioHead()}
balancer = CGGM(heads, task_loss=nn.CrossEntropyLoss(), score=accuracy)
encoders = {"text": network.text_branch, "audio": network.audio_branch}
balancer.bind(encoders=encoders, output_layer=network.classifier)

with TemporaryDirectory() as folder, RunRecorder(balancer, folder, simulated=True):
    for step in range(1, 201):
        text, audio, target = simulated_batch(centers)
        optimizer.zero_grad()
        loss = balancer(network(text, audio), target)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            for name, read in balancer.readings_by_modality.items():
                told = f"B {read['term']:.2f}  cos {read['cosine']:+.2f}"
                print(f"step {step:<3}  {name:<5}  score {read['score']:.2f}  {told}")
balancer.unbind()
