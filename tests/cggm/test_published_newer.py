"""Methods from 2024 on against the published algorithms, transcribed here from scratch.

A transcription is plain tensor arithmetic on the weights of a small network, as its paper has it
and, where the paper leaves something open, as its published code does, whose commit is named. Loss
and gradients of three steps have to agree.
"""

import torch
from torch import nn
from torch.testing import assert_close

from cggm import methods

cross_entropy = nn.functional.cross_entropy
NEWER = {"DGL"}
NAMES = ("audio", "video")
WIDTH, CLASSES, LR = 5, 3, 0.1


class Concatenated(nn.Module):
    """Two linear encoders, and a linear layer on both of their features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoders = nn.ModuleDict({name: nn.Linear(4, WIDTH) for name in NAMES})
        self.output_layer = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, inputs):
        return self.decode({name: self.encoders[name](inputs[name]) for name in NAMES})

    def decode(self, features):
        return self.output_layer(torch.cat([features[name] for name in NAMES], 1))


def batches(count=3, size=8):
    """Inputs by modality and classes of each batch."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = {name: torch.randn(size, 4, generator=generator) for name in NAMES}
        yield inputs, torch.randint(CLASSES, (size,), generator=generator)


def weights_of(network):
    """Copies of a network's parameters, by name, as leaves."""
    return {k: p.detach().clone().requires_grad_() for k, p in network.named_parameters()}


def encoded(weights, inputs):
    """Features by modality."""
    return [
        inputs[n] @ weights[f"encoders.{n}.weight"].T + weights[f"encoders.{n}.bias"] for n in NAMES
    ]


def linear(weights, features):
    """Logits of concatenated features."""
    joined = torch.cat(features, 1)
    return joined @ weights["output_layer.weight"].T + weights["output_layer.bias"]


def agree(method, network, published):
    """Hold loss and gradients of three steps of SGD to those of a transcription.

    Args:
        method: Bound to the network.
        network: Trained along.
        published: Weights, inputs, target and number of the step to the loss; leaves gradients in
            the weights.
    """
    weights = weights_of(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    for number, (inputs, target) in enumerate(batches()):
        optimizer.zero_grad()
        loss = method(network(inputs), target)
        loss.backward()
        expected = published(weights, inputs, target, number)
        assert_close(loss, expected, msg=f"loss of step {number}")
        optimizer.step()
        for name, parameter in network.named_parameters():
            assert_close(parameter.grad, weights[name].grad, msg=f"{name}, step {number}")
        with torch.no_grad():
            for value in weights.values():
                value -= LR * value.grad
                value.grad = None


def test_dgl():
    """Wei et al., ICCV 2025; main_dgl.py and ConcatFusion_DGL of ICCV2025-GDL, b72a55f."""
    alpha = 4.0

    def published(weights, inputs, target, number):
        features = encoded(weights, inputs)
        alone = [
            cross_entropy(
                linear(weights, [h if k == m else 0 * h for k, h in enumerate(features)]), target
            )
            for m in range(2)
        ]
        unimodal = alpha * sum(alone)
        unimodal.backward()
        for name, value in weights.items():
            if name.startswith("output_layer"):
                value.grad = None
        fused = cross_entropy(linear(weights, [h.detach() for h in features]), target)
        fused.backward()
        return (unimodal + fused).detach()

    network = Concatenated()
    agree(methods.DGL(cross_entropy, alpha=alpha).bind(network), network, published)
