"""Small multimodal networks and batches that the tests of the core share."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm import CGGM
from cggm.late_fusion import LateFusion

NAMES = ("text", "audio", "video")


class Late(nn.Module):
    """Linear encoders, fusion by concatenation, linear output layer."""

    def __init__(self, names=NAMES, width: int = 6, classes: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width))
                for n in names
            }
        )
        self.fusion = nn.Sequential(
            nn.Linear(width * len(names), width), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )
        self.output_layer = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(encode(self, inputs))

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.output_layer(self.fusion(torch.cat(list(features.values()), dim=-1)))


class Additive(Late):
    """Encoders whose sum is decoded, so that their order does not matter."""

    def __init__(self, names=NAMES, width: int = 6, classes: int = 4) -> None:
        super().__init__(names, width, classes)
        self.fusion = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.output_layer(self.fusion(torch.stack(list(features.values())).sum(0)))


class Gated(Additive):
    """Modalities each of which is modulated by what a unit makes of all."""

    def __init__(self, names=NAMES, width: int = 6, classes: int = 4) -> None:
        super().__init__(names, width, classes)
        self.units = nn.ModuleDict({n: nn.Linear(width, width) for n in names})

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        total = torch.stack(list(features.values())).sum(0)
        pairs = features.items()
        return super().decode({n: x * self.units[n](total).sigmoid() for n, x in pairs})


class Convolutional(nn.Module):
    """Encoders with a skip inside a dict, a 1x1 output layer and upsampling, in 2-D or 3-D."""

    def __init__(self, names=NAMES, dims: int = 2, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.encoders = nn.ModuleDict({n: SkipEncoder(conv, width) for n in names})
        self.decoder = conv(2 * width * len(names), width, 1)
        self.output_layer = conv(width, classes, 1)
        self.mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(encode(self, images[:, :, None]))

    def decode(self, features: Mapping[str, Mapping[str, object]]) -> Tensor:
        parts = [p for f in features.values() for p in (f["low"], f["rest"][0])]
        logits = self.output_layer(torch.relu(self.decoder(torch.cat(parts, 1))))
        return nn.functional.interpolate(logits, scale_factor=2, mode=self.mode)


class AdditiveMaps(Convolutional):
    """Encoders of images whose sum is decoded, so that their order does not matter."""

    def __init__(self, names=NAMES) -> None:
        super().__init__(names[:1])
        self.encoders = nn.ModuleDict({n: SkipEncoder(nn.Conv2d, 4) for n in names})

    def decode(self, features: Mapping[str, Mapping[str, object]]) -> Tensor:
        both = [torch.cat([f["low"], f["rest"][0]], 1) for f in features.values()]
        logits = self.output_layer(torch.relu(self.decoder(torch.stack(both).sum(0))))
        return nn.functional.interpolate(logits, scale_factor=2, mode=self.mode)


class LateFused(nn.Module):
    """The encoders of :class:`Late` or of :class:`Convolutional`, with a head each."""

    def __init__(self, encoders: nn.ModuleDict, head, rule: str = "mean") -> None:
        super().__init__()
        self.encoders = encoders
        heads = {name: head() for name in encoders}
        self.output_layer = LateFusion(heads, rule, shared=rule == "entropy")

    def forward(self, inputs: Tensor) -> Tensor:
        images = inputs[:, :, None] if inputs.ndim > 3 else inputs
        return self.output_layer.combine(self.output_layer(encode(self, images)))


def encode(network: nn.Module, inputs: Tensor) -> dict[str, object]:
    """What each encoder returns for its slice of the inputs."""
    pairs = zip(network.encoders.items(), inputs.unbind(1), strict=True)
    return {name: encoder(x) for (name, encoder), x in pairs}


class SkipEncoder(nn.Module):
    """Two features, the second computed from the first."""

    def __init__(self, conv: type[nn.Module], width: int) -> None:
        super().__init__()
        self.first = conv(1, width, 3, 2, 1)
        self.second = conv(width, width, 3, 1, 1)

    def forward(self, image: Tensor) -> Mapping[str, object]:
        low = torch.tanh(self.first(image))
        return {"low": low, "rest": [self.second(low), "not a tensor"]}


class ConvolutionalHead(nn.Module):
    """Head of :class:`Convolutional`."""

    def __init__(self, dims: int = 2, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.mix = conv(2 * width, width, 1)
        self.output_layer = conv(width, classes, 1)
        self.mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]

    def forward(self, features: Mapping[str, object]) -> Tensor:
        mixed = torch.relu(self.mix(torch.cat([features["low"], features["rest"][0]], 1)))
        return nn.functional.interpolate(self.output_layer(mixed), scale_factor=2, mode=self.mode)


class LinearHead(nn.Module):
    """Head of :class:`Late`."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.output_layer = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.output_layer(features)


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of right classes."""
    return (prediction.argmax(1) == target).float().mean()


def late_batch(size: int = 16, names=NAMES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs ``(B, M, 5)`` and classes that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, len(names), 5, generator=generator)
    return inputs, inputs[:, :, :4].sum(1).argmax(1)


def make_late(names=NAMES, seed: int = 0, **network) -> tuple[Late, dict[str, nn.Module]]:
    """A network and its heads, always the same."""
    torch.manual_seed(seed)
    return Late(names, **network), {name: LinearHead() for name in names}


def make_late_fused(names=NAMES, seed: int = 0, rule: str = "mean") -> LateFused:
    """A network of late fusion, always the same."""
    torch.manual_seed(seed)
    return LateFused(Late(names).encoders, LinearHead, rule)


def make_cggm(heads: Mapping[str, nn.Module], **settings) -> CGGM:
    """CGGM for classification with plain SGD heads."""
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return CGGM(heads, nn.functional.cross_entropy, accuracy, **settings)


def train(network, optimizer, criterion, batches) -> list[Tensor]:
    """A bare loop; returns the terms of each step."""
    terms = []
    for inputs, target in batches:
        optimizer.zero_grad()
        criterion(network(inputs), target).backward()
        optimizer.step()
        terms.append(criterion.readings["term"].clone())
    return terms
