"""Networks, batches and comparison by which methods are held to transcriptions of three steps."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.late_fusion import LateFusion
from tests.quantifiers import every

RATE, HEAD_RATE, CLASSES = 0.5, 0.3, 4
cross_entropy, cosine = nn.functional.cross_entropy, nn.functional.cosine_similarity


class Net(nn.Module):
    """Encoders a and v of vectors, fusion of what they return, linear output layer."""

    def __init__(self, fusion: str = "hidden") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoders = nn.ModuleDict({n: nn.Linear(5, 3) for n in "av"})
        self.hidden = nn.Linear(6, 3)
        self.output_layer = nn.Linear(3 if fusion == "hidden" else 6, CLASSES)
        self.units = nn.ModuleDict({n: nn.Linear(6, 3) for n in "av"})
        self.fusion = fusion

    def forward(self, x):
        return self.decode(features(self, x))

    def decode(self, h):
        joined = torch.cat([h["a"], h["v"]], 1)
        if self.fusion == "units":
            joined = torch.cat([h[n] * torch.sigmoid(self.units[n](joined)) for n in "av"], 1)
        if self.fusion == "hidden":
            joined = torch.tanh(self.hidden(joined))
        return self.output_layer(joined)


class Late(nn.Module):
    """The same encoders, a linear head each, and a combination of their logits."""

    def __init__(self, rule: str = "sum") -> None:
        super().__init__()
        net = Net()
        self.encoders = net.encoders
        self.output_layer = LateFusion(heads(), rule, shared=rule == "entropy")

    def forward(self, x):
        return self.output_layer.combine(self.output_layer(features(self, x)))


class Head(nn.Module):
    """Linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(3, CLASSES)

    def forward(self, h):
        return self.output_layer(h)


def heads():
    torch.manual_seed(4)
    return {n: Head() for n in "av"}


def batches():
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(3):
        x = torch.randn(2, 12, 5, generator=generator)
        # a tells more than v, so that there is something to balance
        found.append((x, (3 * x[0, :, :CLASSES] + x[1, :, :CLASSES]).argmax(1)))
    return found


def confidence(logits, y):
    """Mean probability of the true class."""
    return logits.softmax(1)[torch.arange(len(y)), y].mean()


def ours(net, method, epochs=(1, 1, 1), reading="term"):
    """Coefficients, loss and gradients of each step; plain SGD between."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    rows = []
    for (x, y), epoch in zip(batches(), epochs, strict=True):
        method.start_epoch(epoch)
        method.identify(torch.arange(len(y)))
        optimizer.zero_grad()
        loss = method(net(x), y)
        loss.backward()
        method.finish_gradients()
        gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        rows.append((method.readings[reading].clone(), loss.detach(), gradients))
        optimizer.step()
    return rows


def published(net, rule, own=None):
    """The same of a transcription: ``rule(net, heads, x, y)`` to coefficients, loss, gradients."""
    rows = []
    for x, y in batches():
        coefficients, loss, gradients, head_gradients = rule(net, own, x, y)
        pairs = zip(net.parameters(), gradients, strict=True)
        rows.append((coefficients, loss.detach(), list(gradients)))
        with torch.no_grad():
            for parameter, gradient in pairs:
                if gradient is not None:
                    parameter -= RATE * gradient
            for head in own or {}:
                parameters = own[head].parameters()
                for p, g in zip(parameters, head_gradients[head], strict=True):
                    p -= HEAD_RATE * g
    return rows


def agree(found, expected, losses):
    for (c, loss, gradients), (wanted, value, theirs) in zip(found, expected, strict=True):
        assert_close(c, wanted.float(), rtol=1e-5, atol=1e-6)
        assert_close(loss, value, rtol=1e-5, atol=1e-6)
        for gradient, other in zip(gradients, theirs, strict=True):
            zero = gradient is None or other is None
            assert not zero or every(g is None or not g.any() for g in (gradient, other))
            assert zero or torch.allclose(gradient, other, rtol=1e-4, atol=1e-6)
    assert torch.stack([row[1] for row in found]).tolist() == pytest.approx(losses, abs=2e-5)


def gradients_of(loss, net, **more):
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, **more))


def head_step(own, h, y):
    """Gradients of the heads' losses in the heads, from detached features."""
    found = {}
    for n, head in own.items():
        loss = cross_entropy(head(h[n].detach()), y)
        found[n] = torch.autograd.grad(loss, list(head.parameters()))
    return found


def features(net, x):
    return {n: net.encoders[n](part) for n, part in zip("av", x, strict=True)}


def scaled(net, gradients, factors):
    """Gradients of which those of the encoders are multiplied."""
    owner = {id(p): k for k, n in enumerate("av") for p in net.encoders[n].parameters()}
    pairs = zip(net.parameters(), gradients, strict=True)
    return [g if g is None or id(p) not in owner else g * factors[owner[id(p)]] for p, g in pairs]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=HEAD_RATE)
