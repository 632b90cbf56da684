"""DGL: which loss reaches which parameters, and that passes through the fusion leave no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods import DGL
from tests.cggm.networks import NAMES, Late, late_batch, make_late
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every

cross_entropy = nn.functional.cross_entropy
INPUTS, TARGET = late_batch()


def make(network=None, **settings):
    network = network or make_late()[0]
    return network, DGL(cross_entropy, **settings).bind(network)


def alone(network, name, inputs=INPUTS):
    """Prediction from one modality, with zeros for the others' features."""
    features = {n: network.encoders[n](x) for n, x in zip(NAMES, inputs.unbind(1), strict=True)}
    return network.decode({n: h if n == name else torch.zeros_like(h) for n, h in features.items()})


def test_encoders_learn_alone_and_the_fusion_from_all():
    network, method = make(alpha=2.0)
    twin = copy.deepcopy(network)
    loss = method(network(INPUTS), TARGET)
    loss.backward()
    fused = cross_entropy(twin(INPUTS), TARGET)
    parts = [p for k, p in twin.named_parameters() if not k.startswith("encoders.")]
    expected = torch.autograd.grad(fused, parts)
    ours = [p.grad for k, p in network.named_parameters() if not k.startswith("encoders.")]
    for gradient, wanted in zip(ours, expected, strict=True):
        assert_close(gradient, wanted)
    losses = [cross_entropy(alone(twin, name), TARGET) for name in NAMES]
    assert_close(loss, fused + 2 * sum(losses))
    assert_close(method.readings["unimodal_loss"], torch.stack(losses).detach())
    for name, own in zip(NAMES, losses, strict=True):
        wanted = torch.autograd.grad(2 * own, list(twin.encoders[name].parameters()))
        for p, gradient in zip(network.encoders[name].parameters(), wanted, strict=True):
            assert_close(p.grad, gradient)


def test_without_detaching_the_fused_gradient_is_added():
    network, method = make(detach=False)
    twin = copy.deepcopy(network)
    method(network(INPUTS), TARGET).backward()
    total = cross_entropy(twin(INPUTS), TARGET)
    total = total + 4 * sum(cross_entropy(alone(twin, name), TARGET) for name in NAMES)
    total.backward()
    for name in NAMES:
        pairs = zip(
            network.encoders[name].parameters(), twin.encoders[name].parameters(), strict=True
        )
        for p, q in pairs:
            assert_close(p.grad, q.grad)


def test_running_statistics_and_recurrent_layers_of_the_fusion_learn_from_the_fused_loss_alone():
    torch.manual_seed(0)

    class Recurrent(Late):
        def __init__(self):
            super().__init__()
            self.norm, self.reader = nn.BatchNorm1d(6), nn.LSTM(6, 6, batch_first=True)

        def decode(self, features):
            steps = torch.stack([self.norm(h) for h in features.values()], 1)
            return self.output_layer(self.reader(steps)[0][:, -1])

    network = Recurrent()
    twin, joint = copy.deepcopy(network), copy.deepcopy(network)
    _, method = make(network)
    method(network(INPUTS), TARGET).backward()
    cross_entropy(joint(INPUTS), TARGET).backward()
    for part in ("reader", "norm"):
        pairs = zip(
            getattr(network, part).parameters(), getattr(joint, part).parameters(), strict=True
        )
        for p, q in pairs:
            assert_close(p.grad, q.grad)
    assert torch.equal(network.norm.running_mean, joint.norm.running_mean)
    assert isinstance(network.reader.weight_hh_l0, nn.Parameter)
    assert network.reader._flat_weights[0] is network.reader.weight_ih_l0
    assert not torch.equal(network.norm.running_mean, twin.norm.running_mean)


def test_losses_are_those_of_the_samples_that_have_a_modality():
    network, method = make()
    there = torch.arange(16) < 6
    method.present({"text": there, "audio": False})
    loss = method(network(INPUTS), TARGET)
    expected = cross_entropy(alone(network, "text")[:6], TARGET[:6])
    assert_close(
        method.readings["unimodal_loss"][[0, 2]],
        torch.stack([expected, cross_entropy(alone(network, "video"), TARGET)]).detach(),
    )
    assert method.readings["unimodal_loss"][1].isnan()
    loss.backward()
    assert every((p.grad == 0).all() for p in network.encoders["audio"].parameters())


def test_a_skipped_encoder_is_refused():
    class Skipping(Late):
        def forward(self, inputs):
            pairs = zip(NAMES, inputs.unbind(1), strict=True)
            found = {n: self.encoders[n](x) for n, x in pairs if n != "audio"}
            return self.decode(found | {"audio": torch.zeros(16, 6)})

    network, method = make(Skipping())
    method.present({"audio": False})
    with pytest.raises(ValueError, match=r"skipped \['audio'\]. Run encoders on zeros"):
        method(network(INPUTS), TARGET)


def test_a_step_never_waits_for_the_device():
    network, method = make()
    with NoSynchronization():
        method(network(INPUTS), TARGET).backward()


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"alpha": float("nan")}, {"alpha": 0.0}])
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match="`alpha`"):
        make(**settings)


def test_networks_without_decode_are_refused():
    network, _ = make_late()
    with pytest.raises(ValueError, match="Expected `decode`, with which DGL"):
        DGL(cross_entropy).bind(encoders=network.encoders, output_layer=network.output_layer)
