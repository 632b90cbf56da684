"""MMPareto: the published combination on numbers worked out by hand, and what it acts on."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from cggm.methods.mmpareto import MMPareto, pareto
from tests.cggm.networks import (
    NAMES,
    Convolutional,
    ConvolutionalHead,
    LinearHead,
    accuracy,
    late_batch,
    make_late,
)
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every, none
from tests.ranks import on_two_ranks

BATCHES = [late_batch(seed=seed) for seed in range(4)]
cross_entropy = nn.functional.cross_entropy


def make(heads, score=accuracy, **settings):
    settings.setdefault("head_optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return MMPareto(heads, cross_entropy, score, **settings)


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def train(network, criterion, batches, accumulation=1):
    optimizer = sgd(network)
    for index, (inputs, target) in enumerate(batches):
        (criterion(network(inputs), target) / accumulation).backward()
        if (index + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def expected_gradients(network, heads, batch):
    """The combination of each encoder, from gradients of separate graphs."""
    inputs, target = batch
    combined = []
    for index, (name, encoder) in enumerate(network.encoders.items()):
        parameters = list(encoder.parameters())
        fused = torch.autograd.grad(cross_entropy(network(inputs), target), parameters)
        alone = cross_entropy(heads[name](encoder(inputs[:, index])), target)
        combined.append(pareto(flat(fused), flat(torch.autograd.grad(alone, parameters)), 1.5)[0])
    return combined


def test_finished_before_a_clipping_the_whole_gradient_is_clipped():
    norms = {}
    for finished in (True, False):
        network, heads = make_late()
        method = make(heads).bind(network)
        optimizer = sgd(network, lr=1.0)
        method(network(BATCHES[0][0]), BATCHES[0][1]).backward()
        if finished:
            method.finish_gradients()
            method.finish_gradients()  # once is all
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        before = flat(p.detach().clone() for p in network.parameters())
        optimizer.step()
        norms[finished] = (before - flat(network.parameters())).norm().item()
    assert norms[True] == pytest.approx(0.1, rel=1e-4)
    assert norms[False] > 0.12


def test_finished_gradients_are_those_of_the_step_and_once():
    networks = []
    for finished in (True, False):
        network, heads = make_late()
        method = make(heads).bind(network)
        optimizer = sgd(network)
        for inputs, target in BATCHES:
            method(network(inputs), target).backward()
            if finished:
                method.finish_gradients()
            optimizer.step()
            optimizer.zero_grad()
        networks.append(network)
    pairs = zip(*(network.parameters() for network in networks), strict=True)
    assert every(torch.equal(p, q) for p, q in pairs)


def test_scores_move_with_each_step_and_stay_where_a_modality_lacks():
    network, heads = make_late()
    method = make(heads).bind(network)
    train(network, method, BATCHES[:2])
    assert int(method.scores.steps) == 2
    last = method.readings["score"].clone()
    assert_close(method.scores.last, last)
    method.present({"audio": False})
    method(network(BATCHES[2][0]), BATCHES[2][1])
    index = NAMES.index("audio")
    assert_close(method.scores.scores(method.window)[index], last[index])


# reference: Wei & Hu, ICML 2024, algorithm 1 with gamma = 1.5
@pytest.mark.parametrize(
    ("mm", "uni", "term", "expected"),
    [
        # agree (cosine 0.6): the sum (1.6, 0.8), times 1.5
        ([1.0, 0.0], [0.6, 0.8], 0.5, [2.4, 1.2]),
        # conflict: a = (-2, 1).(-1, 1) / 5 = 0.6; 2 (0.6 - 0.4, 0.4) = (0.4, 0.8) of norm
        # sqrt(0.8) is below the sum's, (0, 1) of norm 1: (0.4, 0.8) / sqrt(0.8) * 1.5
        ([1.0, 0.0], [-1.0, 1.0], 0.6, [0.670820393, 1.341640786]),
        # conflict of equal norms: a = 1/2, the sum itself, (0.4, 0.8), times 1.5
        ([1.0, 0.0], [-0.6, 0.8], 0.5, [0.6, 1.2]),
        # orthogonal counts as conflict: a = (-1, 2).(0, 2) / 5 = 0.8; 2 (0.8, 0.4) = (1.6, 0.8)
        # of norm sqrt(3.2) is below sqrt(5)
        ([1.0, 0.0], [0.0, 2.0], 0.8, [3.0, 1.5]),
    ],
)
def test_published_rule_on_hand_computed_numbers(mm, uni, term, expected):
    g, cosine, found = pareto(torch.tensor(mm), torch.tensor(uni), 1.5)
    assert_close(g, torch.tensor(expected))
    assert_close(found, torch.tensor(term))
    assert_close(cosine, torch.cosine_similarity(torch.tensor(mm), torch.tensor(uni), dim=0))


@pytest.mark.parametrize(
    ("mm", "uni"),
    [
        ([3.0, 4.0], [0.0, 0.0]),
        ([0.0, 0.0], [3.0, 4.0]),
        ([0.3, 0.1], [-0.9, -0.3]),
        ([0.0], [0.0]),
    ],
)
def test_no_direction_gives_the_plain_sum(mm, uni):
    mm, uni = torch.tensor(mm), torch.tensor(uni)
    assert_close(pareto(mm, uni, 1.5)[0], 1.5 * (mm + uni))


def test_the_result_descends_on_both_and_is_not_below_the_sum():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        mm, uni = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        g, _, term = pareto(mm, uni, 1.0)
        assert g @ mm >= -1e-9
        assert g @ uni >= -1e-9
        assert g.norm() >= (mm + uni).norm() - 1e-9
        assert 0 <= term <= 1


@pytest.mark.parametrize("seed", range(3))
def test_encoders_get_the_combination_and_others_their_own(seed):
    network, heads = make_late(seed=seed)
    start = copy.deepcopy(network)
    expected = expected_gradients(network, heads, BATCHES[0])
    fused = torch.autograd.grad(
        cross_entropy(network(BATCHES[0][0]), BATCHES[0][1]), [*network.output_layer.parameters()]
    )
    method = make(heads).bind(network)
    train(network, method, BATCHES[:1])
    for name, gradient in zip(NAMES, expected, strict=True):
        pairs = (start.encoders[name].parameters(), network.encoders[name].parameters())
        moved = flat([(p - q) / 0.1 for p, q in zip(*pairs, strict=True)])
        assert_close(moved, gradient, rtol=1e-4, atol=1e-5)
    pairs = zip(start.output_layer.parameters(), network.output_layer.parameters(), strict=True)
    for (p, q), gradient in zip(pairs, fused, strict=True):
        assert_close((p - q) / 0.1, gradient, rtol=1e-4, atol=1e-5)
    assert method.readings["cosine"].shape == method.readings["term"].shape == (3,)


def test_accumulation_equals_the_whole_batch():
    ends = []
    inputs, target = BATCHES[0]
    for parts in (1, 4):
        network, heads = make_late()
        method = make(heads).bind(network)
        batches = zip(inputs.chunk(parts), target.chunk(parts), strict=True)
        train(network, method, list(batches), accumulation=parts)
        ends.append([*network.parameters(), *method.parameters(), *method.readings.values()][:-4])
    for p, q in zip(*ends, strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_window_without_a_step_is_forgotten():
    ends = []
    for interrupted in (False, True):
        network, heads = make_late()
        method = make(heads).bind(network)
        if interrupted:
            method(network(BATCHES[1][0]), BATCHES[1][1]).backward()
            network.zero_grad()
        train(network, method, BATCHES[:1])
        ends.append(list(network.parameters()))
    assert every(torch.equal(p, q) for p, q in zip(*ends, strict=True))


def test_weight_zero_is_joint_training_while_heads_learn():
    network, heads = make_late(dropout=0.3)
    joint, start = copy.deepcopy((network, heads))
    torch.manual_seed(1)
    train(network, make(heads, weight=0.0).bind(network), BATCHES)
    torch.manual_seed(1)
    train(joint, cross_entropy, BATCHES)
    assert every(
        torch.equal(p, q) for p, q in zip(network.parameters(), joint.parameters(), strict=True)
    )
    assert not torch.equal(heads["text"].output_layer.weight, start["text"].output_layer.weight)


def test_weight_is_between_joint_training_and_the_combination():
    moved = []
    for weight in (0.0, 0.5, 1.0):
        network, heads = make_late()
        train(network, make(heads, weight=weight).bind(network), BATCHES[:1])
        moved.append(flat(network.encoders.parameters()).detach())
    assert_close(moved[1], (moved[0] + moved[2]) / 2)
    assert not torch.allclose(moved[0], moved[2])


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_changes_nothing(fused):
    plain, heads = make_late()
    scaled, others = copy.deepcopy((plain, heads))
    train(plain, make(heads).bind(plain), BATCHES[:1])
    method = make(others).bind(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1, fused=fused)
    scaler.scale(method(scaled(BATCHES[0][0]), BATCHES[0][1])).backward()
    scaler.step(optimizer)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_direction(dtype):
    ends = []
    for enabled in (False, True):
        network, heads = make_late()
        method = make(heads).bind(network)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = method(network(BATCHES[0][0]), BATCHES[0][1])
        loss.backward()
        sgd(network).step()
        ends.append(flat(p.detach() for p in network.parameters()))
    assert_close(ends[0], ends[1], rtol=0.1, atol=0.01)


def test_nested_features_and_dense_targets():
    torch.manual_seed(0)
    network, heads = Convolutional(), {n: ConvolutionalHead() for n in NAMES}
    method = make(heads, score=lambda p, t: (p.argmax(1) == t).float().mean()).bind(network)
    train(network, method, [(torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8)))] * 2)
    assert every(p.isfinite().all() for p in network.parameters())
    assert method.readings["term"].isfinite().all()


def test_a_head_that_diverged_leaves_the_fused_gradient():
    network, heads = make_late()
    joint = copy.deepcopy(network)
    nn.init.constant_(heads["audio"].output_layer.weight, float("inf"))
    train(network, make(heads).bind(network), BATCHES[:1])
    train(joint, cross_entropy, BATCHES[:1])
    pairs = (network.encoders["audio"].parameters(), joint.encoders["audio"].parameters())
    assert every(torch.equal(p, q) for p, q in zip(*pairs, strict=True))
    assert every(p.isfinite().all() for p in network.parameters())


def test_an_encoder_out_of_the_fused_losss_reach_learns_from_its_head():
    network, heads = make_late()
    start = copy.deepcopy(network.encoders["audio"])
    decode = network.decode
    network.decode = lambda features: decode({**features, "audio": features["audio"].detach()})
    train(network, make(heads).bind(network), BATCHES[:1])
    pairs = zip(start.parameters(), network.encoders["audio"].parameters(), strict=True)
    assert none(torch.equal(p, q) for p, q in pairs)


def test_gradients_are_combined_within_a_closure():
    ends = []
    for closed in (False, True):
        network, heads = make_late()
        method, optimizer = make(heads).bind(network), torch.optim.SGD(network.parameters(), 0.1)

        def closure(network=network, method=method, optimizer=optimizer):
            optimizer.zero_grad()
            loss = method(network(BATCHES[0][0]), BATCHES[0][1])
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure) if closed else (closure(), optimizer.step())
        ends.append([p.detach() for p in network.parameters()])
    assert every(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.parametrize("settings", [{"weight": -0.1}, {"weight": 1.1}, {"gamma": 0.0}])
def test_wrong_settings_are_named(settings):
    with pytest.raises(ValueError, match=r"`weight` in \[0, 1\] and `gamma` positive"):
        make({n: LinearHead() for n in NAMES}, **settings)


def test_a_step_does_not_wait_for_the_device():
    network, heads = make_late()
    method = make(heads).bind(network)
    optimizer = sgd(network)
    train(network, method, BATCHES[:1])
    with NoSynchronization():
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            for inputs, target in BATCHES[1:3]:
                method(network(inputs), target).backward()
            optimizer.step()


def weights_of_rank(rank):
    """What the network ends with on this rank's half of each batch."""
    network, heads = make_late()
    wrapped = DistributedDataParallel(network)
    method = make(heads).bind(wrapped)
    for batch in BATCHES[:3]:
        inputs, target = (part.chunk(2)[rank] for part in batch)
        network.zero_grad()
        method(wrapped(inputs), target).backward()
        sgd(network).step()
    return network.state_dict()


def test_two_ranks_equal_one_process(tmp_path):
    first, second = on_two_ranks(weights_of_rank, tmp_path)
    network, heads = make_late()
    train(network, make(heads).bind(network), BATCHES[:3])
    for key, value in network.state_dict().items():
        assert torch.equal(first[key], second[key])
        assert_close(first[key], value, rtol=1e-4, atol=1e-5)
