"""RedCore: weights from losses worked out by hand, and what is taken from samples."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cggm.methods import RedCore
from cggm.methods._parts import relative_advantages
from tests.cggm.networks import NAMES, accuracy, late_batch, make_late
from tests.cggm.synchronization import NoSynchronization

cross_entropy = nn.functional.cross_entropy
INPUTS, TARGET = late_batch()


def make(**settings):
    network, heads = make_late()
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return network, RedCore(heads, cross_entropy, accuracy, **settings).bind(network)


def given(method, *losses):
    """Windows of these losses, each followed by a commit; the weights after each."""
    rows = []
    for row in losses:
        method.window.clear()
        seen = torch.tensor([0.0 if x is None else 1.0 for x in row])
        method.window.add("seen", seen)
        method.window.add("losses", torch.tensor([x or 0.0 for x in row]))
        method.commit()
        method.clock.steps += 1
        rows.append(method.beta.clone())
    return rows


def test_weights_move_against_the_advantage():
    _, method = make()
    # means .7 (1, 2, 3): r = (.5, 0, -.5); eta .1 * 1.5: beta (.925, 1, 1.075) of norm 1.7353
    first, second, third = given(method, (1.0, 2.0, 3.0), (4.0, 2.0, 0.0), (4.0, 2.0, 0.0))
    assert_close(first, torch.tensor([0.925, 1.0, 1.075]) / 1.735295, rtol=1e-5, atol=1e-5)
    assert torch.equal(second, first)
    # means .3 .7 (1, 2, 3) + .7 (4, 2, 0) = (3.01, 1.82, .63), then (3.703, 1.946, .189):
    # their mean is 1.946: r = (-.902878, 0, .902878)
    moved = first + 0.15 * torch.tensor([0.902878, 0.0, -0.902878])
    assert_close(third, moved / moved.norm(), rtol=1e-5, atol=1e-5)


def test_step_size_grows_and_weights_have_a_floor():
    _, method = make(every=1, growth_every=2, eta=10.0)
    rows = given(method, *[(0.0, 1.0, 2.0)] * 3)
    # r = (1, 0, -1), eta 15: (-14, 1, 16) is (.1, 1, 16) of norm 16.03153
    assert_close(rows[0], torch.tensor([0.1, 1.0, 16.0]) / 16.03153, rtol=1e-5, atol=1e-6)
    # eta 22.5 in the third step, the first two below the floor
    moved = torch.stack([torch.tensor(0.1), torch.tensor(0.1), rows[1][2] + 22.5])
    assert_close(rows[2], moved / moved.norm(), rtol=1e-5, atol=1e-6)


def test_a_modality_that_no_sample_has_keeps_its_mean():
    _, method = make()
    given(method, (1.0, 2.0, 3.0), (5.0, None, 3.0))
    assert_close(method.mean, torch.tensor([0.21 + 3.5, 1.4, 0.63 + 2.1]))


def test_advantages_are_finite():
    assert relative_advantages(torch.zeros(3)).tolist() == [0, 0, 0]
    assert relative_advantages(torch.tensor([1.0, float("nan")])).tolist() == [0, 0]
    assert relative_advantages(torch.tensor([-1.0, 1.0])).tolist() == [0, 0]


def test_loss_is_the_weighted_sum_and_reaches_the_encoders():
    network, method = make(weight=2.0)
    losses = method.heads.losses(
        {n: network.encoders[n](x) for n, x in zip(NAMES, INPUTS.unbind(1), strict=True)},
        TARGET,
        cross_entropy,
    )
    task = cross_entropy(network(INPUTS), TARGET)
    loss = method(network(INPUTS), TARGET)
    weights = method.readings["weight"]
    assert_close(loss, task + 2 * (weights * losses).sum())
    assert weights.argmax() == losses.argmax()


def test_samples_from_which_a_modality_was_taken_are_out_of_its_loss():
    network, method = make(p={"text": 0.5, "audio": 0.0, "video": 0.0}, samples=16)
    method.identify(torch.arange(16))
    head = method.heads["text"]
    features = network.encoders["text"](INPUTS[:, 0])
    loss = method(network(INPUTS), TARGET)
    kept = method.draws.last[:, 0]
    assert 0 < kept.sum() < 16
    expected = cross_entropy(head(features[kept]), TARGET[kept])
    assert_close(method.readings["head_loss"][0], expected.detach())
    parts = {n: network.encoders[n](x) for n, x in zip(NAMES, INPUTS.unbind(1), strict=True)}
    own = method.heads.losses(parts, TARGET, cross_entropy, method.draws.presence(NAMES))
    parts["text"] = torch.where(kept[:, None], parts["text"], 0.0)
    fused = cross_entropy(network.decode(parts), TARGET)
    assert_close(loss, fused + (method.readings["weight"] * own).sum())
    method.present({"audio": torch.arange(16) < 3})
    method.identify(torch.arange(16))
    method(network(INPUTS), TARGET)
    audio = method.draws.last[:, 1]
    assert audio.tolist() == [k < 3 for k in range(16)]
    expected = cross_entropy(method.heads["audio"](parts["audio"][:3]), TARGET[:3])
    assert_close(method.readings["head_loss"][1], expected.detach())


def test_a_batch_that_lacks_modalities_is_served_where_nothing_is_taken():
    network, method = make()
    method.present({"audio": torch.arange(16) < 3, "video": False})
    loss = method(network(INPUTS), TARGET)
    loss.backward()
    assert loss.isfinite()
    assert method.readings["weight"].isnan().tolist() == [False, False, True]


def test_a_step_never_waits_for_the_device():
    network, method = make()
    with NoSynchronization():
        method(network(INPUTS), TARGET).backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "`weight`"),
        ({"momentum": 0.0}, "`momentum`"),
        ({"eta": -0.1}, "`eta`"),
        ({"every": 0}, "positive intervals"),
        ({"floor": 0.0}, "`floor`"),
        ({"per": "case", "p": 0.5}, "Expected `samples`"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
