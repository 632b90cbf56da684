"""Ready-made heads: of the network's last shape, accepted by a method, and learning."""

import pytest
import torch
from torch import nn

from cggm import CGGM
from cggm.heads import conv_heads, linear_heads


class Network(nn.Module):
    """Two encoders and a last layer."""

    def __init__(self, encoders, output_layer):
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.output_layer = output_layer

    def forward(self, inputs):
        features = [encoder(inputs[name]) for name, encoder in self.encoders.items()]
        features = [f.mean(1) if f.ndim == 3 else f for f in features]
        return self.output_layer(torch.cat(features, 1))


def trained(network, heads, inputs, target, steps=200):
    """Losses of the heads before and after some steps."""
    balancer = CGGM(heads, task_loss=nn.functional.cross_entropy, score=accuracy)
    balancer.bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        balancer(network(inputs), target).backward()
        optimizer.step()
        losses.append(balancer.readings["head_loss"].mean().item())
    return losses[0], losses[-1]


def accuracy(prediction, target):
    return (prediction.argmax(1) == target).float().mean()


def test_linear_heads_serve_vectors_and_sequences():
    torch.manual_seed(0)
    target = torch.tensor([0, 1, 2, 0])
    inputs = {"text": torch.randn(4, 5, 6), "lab": torch.randn(4, 3)}
    network = Network({"text": nn.Linear(6, 7), "lab": nn.Linear(3, 2)}, nn.Linear(9, 3))
    heads = linear_heads(network.output_layer, {"text": 7, "lab": 2})
    first, last = trained(network, heads, inputs, target)
    assert last < first


def test_a_sequence_is_averaged_over_its_steps():
    head = linear_heads(nn.Linear(2, 2, bias=False), {"a": 2})["a"]
    with torch.no_grad():
        head.hidden[0].weight.copy_(torch.eye(2))
        head.hidden[0].bias.zero_()
        head.output_layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    feature = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])  # mean (2, 4)
    assert head(feature).tolist() == [[2.0, 8.0]]
    assert head.output_layer.bias is None


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_conv_heads_predict_at_the_size_of_the_target(axes):
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    heads = conv_heads(convolution(6, 3, 1), {"a": 4, "b": 5}, scale=2)
    assert heads["b"](torch.zeros(2, 5, *[4] * axes)).shape == (2, 3, *[8] * axes)
    assert [*heads] == ["a", "b"]


def test_conv_heads_train():
    torch.manual_seed(0)
    inputs = {name: torch.randn(2, 1, 6, 6) for name in "ab"}
    target = (inputs["a"][:, 0] > 0).long()
    encoders = {name: nn.Conv2d(1, 4, 1) for name in "ab"}
    network = Network(encoders, nn.Conv2d(8, 2, 1))
    first, last = trained(
        network, conv_heads(network.output_layer, dict.fromkeys("ab", 4)), inputs, target
    )
    assert last < first


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (linear_heads, nn.Conv2d(2, 2, 1)),
        (conv_heads, nn.Linear(2, 2)),
        (conv_heads, nn.Conv2d(2, 2, 3)),
    ],
)
def test_another_last_layer_is_refused(make, layer):
    with pytest.raises(ValueError, match="last layer"):
        make(layer, {"a": 2})
