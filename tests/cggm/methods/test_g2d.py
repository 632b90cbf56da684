"""G2D: who is held still for how long, its terms, and teachers that are trained once."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods import G2D
from cggm.methods.g2d import _confidence, _divergence
from cggm.trials import Trials
from tests.cggm.networks import NAMES, LinearHead, late_batch, make_late
from tests.quantifiers import every, none

cross_entropy = nn.functional.cross_entropy
BATCHES = [late_batch(seed=seed) for seed in range(2)]
INPUTS, TARGET = BATCHES[0]


def make(names=NAMES, trained=True, **settings):
    network, heads = make_late(names)
    batches = [late_batch(names=names, seed=seed) for seed in range(2)]
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
    trials = Trials(network, cross_entropy, lambda e: batches, lambda e: batches, sgd)
    method = G2D(cross_entropy, heads, trials, **{"epochs": 2, **settings}).bind(network)
    if trained:
        method.start_epoch(1)
    return network, method


def _taught(logits, temperature):
    """Divergence of equal probabilities from those of a teacher, as PyTorch has it."""
    wanted, found = (logits / temperature).softmax(1), torch.full((2, 2), 0.5).log()
    return temperature**2 * nn.functional.kl_div(found, wanted, reduction="batchmean")


def test_confidence_and_divergence():
    # true classes have 3/4 and 1/2; KL((1/2, 1/2) || (3/4, 1/4)) and 0, averaged
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    assert_close(_confidence(logits, torch.tensor([0, 1])), torch.tensor(1.25))
    expected = (0.5 * torch.log(torch.tensor(2 / 3)) + 0.5 * torch.log(torch.tensor(2.0))) / 2
    assert_close(_divergence(logits, torch.zeros(2, 2), 1.0), expected)
    # at a temperature of 1/2 both have twice the logits: 9/10 and 1/10, a quarter of the divergence
    cold = (0.5 * torch.log(torch.tensor(5 / 9)) + 0.5 * torch.log(torch.tensor(5.0))) / 2
    assert_close(_divergence(logits, torch.zeros(2, 2), 0.5), cold / 4)
    assert_close(_divergence(torch.zeros(2, 2), logits, 0.5), _taught(logits, 0.5))


def test_the_strongest_teachers_encoder_is_still_until_the_last_epoch():
    network, method = make(last_epoch=2)
    twin = copy.deepcopy(network)
    method(network(INPUTS), TARGET).backward()
    strongest = NAMES[int(method.readings["score"].argmax())]
    for name, encoder in network.encoders.items():
        still = every((p.grad == 0).all() for p in encoder.parameters())
        assert still == (name == strongest)
    assert network.output_layer.weight.grad.abs().sum() > 0
    method.start_epoch(3)
    method(network(INPUTS), TARGET)
    assert method.readings["term"].tolist() == [1, 1, 1]
    assert list(twin.state_dict()) == list(network.state_dict())


def test_teachers_are_trained_once_and_learn():
    network, method = make(trained=False)
    with pytest.raises(RuntimeError, match="teachers to be trained"):
        method(network(INPUTS), TARGET)
    start = copy.deepcopy(method.state_dict())
    method.start_epoch(1)
    after = copy.deepcopy(method.state_dict())
    for part in ("teachers", "judges"):
        keys = [key for key in after if key.startswith(part)]
        assert keys
        assert none(torch.equal(after[key], start[key]) for key in keys)
    method.start_epoch(2)
    assert every(
        torch.equal(v, after[k]) for k, v in method.state_dict().items() if "extra" not in k
    )
    assert none(p.requires_grad for p in method.parameters())


def test_one_modality_is_never_held_still():
    network, method = make(["text"])
    inputs, target = late_batch(names=["text"])
    method(network(inputs), target)
    assert method.readings["term"].tolist() == [1]


def test_nothing_is_trained_where_nothing_is_taught():
    method = G2D(cross_entropy, logits=0, features=0, last_epoch=0).bind(make_late()[0])
    method.start_epoch(1)
    assert not list(method.parameters())


@pytest.mark.parametrize(
    "settings", [{"logits": -1.0}, {"features": -1.0}, {"temperature": 0.0}, {"epochs": 0}]
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        make(**settings)


def test_heads_are_needed():
    with pytest.raises(ValueError, match="`heads` and `trials`"):
        G2D(cross_entropy)
    network, _ = make_late()
    trials = Trials(network, cross_entropy, iter, iter, torch.optim.SGD)
    with pytest.raises(ValueError, match="one head per encoder"):
        G2D(cross_entropy, {"text": LinearHead()}, trials).bind(network)


def test_two_classes_are_enough():
    network, method = make()
    for layer in (network.output_layer, *(head.output_layer for head in method.judges.values())):
        layer.weight = nn.Parameter(layer.weight[:2].detach().clone())
        layer.bias = nn.Parameter(layer.bias[:2].detach().clone())
    method.unbind()
    assert method.bind(network).binding.output_weight.shape[0] == 2
