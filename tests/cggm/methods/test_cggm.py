"""CGGM: one step against joint training, state, settings, hand-computed numbers."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from cggm import CGGM
from tests.cggm.networks import NAMES, Late, LinearHead, late_batch, make_cggm, make_late, train
from tests.cggm.synchronization import NoSynchronization
from tests.quantifiers import every

BATCHES = [late_batch(seed=seed) for seed in range(12)]
PAPER = {"rho": 1.0, "gain": "batch", "terms": "raw", "gate": None}


def sgd(network, **settings):
    return torch.optim.SGD(network.parameters(), lr=0.1, **settings)


def equal(a, b):
    return every(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("acts_on", ["gradient", "update"])
def test_one_sgd_step_is_the_joint_step_times_the_terms(acts_on):
    network, heads = make_late()
    network.double()
    heads = {name: head.double() for name, head in heads.items()}
    start, joint = copy.deepcopy(network), copy.deepcopy(network)
    inputs, target = BATCHES[0][0].double(), BATCHES[0][1]
    optimizer = sgd(joint)
    nn.functional.cross_entropy(joint(inputs), target).backward()
    optimizer.step()
    cggm = make_cggm(heads, **PAPER, direction=None, acts_on=acts_on)
    cggm.bind(network)
    (terms,) = train(network, sgd(network), cggm, [(inputs, target)])
    assert len(set(terms.tolist())) > 1
    scaled = 0
    for name, term in zip(NAMES, terms, strict=True):
        parts = [n.encoders[name].parameters() for n in (network, joint, start)]
        for ours, theirs, before in zip(*parts, strict=True):
            assert_close(ours - before, (theirs - before) * term, rtol=1e-5, atol=1e-12)
            scaled += 1
    assert scaled == len(list(network.encoders.parameters()))
    assert equal(network.fusion, joint.fusion)
    assert equal(network.output_layer, joint.output_layer)


def test_update_scaling_is_felt_under_adam_and_gradient_scaling_is_not():
    moved = {}
    for acts_on in ("gradient", "update"):
        network, heads = make_late()
        start = copy.deepcopy(network)
        cggm = make_cggm(heads, **PAPER, direction=None, acts_on=acts_on)
        cggm.bind(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-12)
        (terms,) = train(network, optimizer, cggm, BATCHES[:1])
        moved[acts_on] = [
            (network.encoders[n][2].weight - start.encoders[n][2].weight).abs().max() for n in NAMES
        ]
        cggm.unbind()
    assert_close(torch.stack(moved["gradient"]), torch.full((3,), 0.01), rtol=1e-3, atol=0)
    assert_close(torch.stack(moved["update"]), 0.01 * terms, rtol=1e-3, atol=0)


@pytest.mark.parametrize("neutral", [{"direction": None}, {"lam": 0.0}])
def test_neutral_setting_equals_joint_training_bit_for_bit(neutral):
    network, heads = make_late(dropout=0.3)
    joint = copy.deepcopy(network)
    cggm = make_cggm(heads, rho=None, **neutral).bind(network)
    torch.manual_seed(1)
    train(network, sgd(network), cggm, BATCHES)
    torch.manual_seed(1)
    optimizer = sgd(joint)
    for inputs, target in BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    assert equal(network, joint)


def test_warmup_leaves_the_first_steps_alone():
    network, heads = make_late()
    cggm = make_cggm(heads, **PAPER, warmup=3).bind(network)
    joint = copy.deepcopy(network)
    terms = train(network, sgd(network), cggm, BATCHES[:3])
    optimizer = sgd(joint)
    for inputs, target in BATCHES[:3]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(joint(inputs), target).backward()
        optimizer.step()
    assert equal(network, joint)
    assert every(t.tolist() == [1, 1, 1] for t in terms)
    (later,) = train(network, sgd(network), cggm, BATCHES[3:4])
    assert later.tolist() != [1, 1, 1]


class Fixed(CGGM):
    """CGGM whose terms are given, whatever the scores."""

    def scales(self, step):
        return torch.tensor([0.5, 1.0, 1.5])


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_accumulation_scales_each_micro_batch_once(micro_batches):
    network, heads = make_late()
    cggm = Fixed(heads, nn.functional.cross_entropy, lambda p, t: p.new_zeros(()), lam=0.0)
    cggm.bind(network)
    joint = copy.deepcopy(network)
    inputs, target = late_batch(8)
    for x, y in zip(inputs.chunk(micro_batches), target.chunk(micro_batches), strict=True):
        (cggm(network(x), y) / micro_batches).backward()
    nn.functional.cross_entropy(joint(inputs), target).backward()
    for name, term in zip(NAMES, (0.5, 1.0, 1.5), strict=True):
        parts = network.encoders[name].parameters(), joint.encoders[name].parameters()
        for p, q in zip(*parts, strict=True):
            assert_close(p.grad, q.grad * term, rtol=1e-6, atol=1e-7)


def test_accumulation_moves_the_state_once_from_the_whole_window():
    states = []
    for micro_batches in (1, 4):
        network, heads = make_late()
        cggm = make_cggm(heads, direction=None, gate=None).bind(network)
        optimizer = sgd(network)
        inputs, target = late_batch(8)
        for x, y in zip(inputs.chunk(micro_batches), target.chunk(micro_batches), strict=True):
            (cggm(network(x), y) / micro_batches).backward()
            assert cggm.scores.steps == 0
        optimizer.step()
        assert cggm.scores.steps == 1
        states.append(cggm.state_dict())
    for key in states[0]:
        if not key.endswith("_extra_state"):
            assert_close(states[0][key], states[1][key], rtol=1e-6, atol=1e-7)


def test_a_skipped_half_precision_step_moves_no_state():
    runs = []
    for poisoned in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10_000)
        optimizer = sgd(network)
        for index, (inputs, target) in enumerate(BATCHES[:6]):
            optimizer.zero_grad()
            loss = cggm(network(inputs), target)
            if poisoned and index == 3:
                before = copy.deepcopy(cggm.state_dict())
                scaler.scale(loss * float("inf")).backward()
            else:
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if poisoned and index == 3:
                for key, value in cggm.state_dict().items():
                    if key.endswith("_extra_state"):
                        assert key == "heads._extra_state" or value == before[key]
                    else:
                        assert torch.equal(value, before[key])
                scaler.update(256.0)
        runs.append(cggm)
        cggm.unbind()
    # what follows equals a run in which that batch never was
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    train(network, sgd(network), cggm, BATCHES[:3] + BATCHES[4:6])
    for key, value in cggm.state_dict().items():
        if not key.endswith("_extra_state"):
            assert_close(value, runs[1].state_dict()[key], rtol=1e-5, atol=1e-6)
            assert key.endswith("steps") or "heads" in key or value.shape == (3,)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_window_of_a_skipped_step_is_forgotten(set_to_none):
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    optimizer = sgd(network)
    for inputs, target in BATCHES[:2]:
        optimizer.zero_grad(set_to_none=set_to_none)
        cggm(network(inputs), target).backward()
    reference, heads = make_late()
    other = make_cggm(heads).bind(reference)
    inputs, target = BATCHES[1]
    other(reference(inputs), target).backward()
    assert torch.equal(cggm.readings["score"], other.readings["score"])
    optimizer.step()
    sgd(reference).step()
    for key, value in cggm.heads.state_dict().items():
        if key != "_extra_state":
            assert torch.equal(value, other.heads.state_dict()[key])


@pytest.mark.parametrize("gate", [None, "signal"])
def test_resume_from_state_dict_is_exact(gate):
    network, heads = make_late()
    settings = {"head_optimizer": lambda p: torch.optim.Adam(p, lr=0.05), "gate": gate}
    cggm = make_cggm(heads, **settings).bind(network)
    optimizer = sgd(network, momentum=0.9)
    train(network, optimizer, cggm, BATCHES[:5])
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict(), cggm.state_dict()], file)
    whole = train(network, optimizer, cggm, BATCHES[5:])
    file.seek(0)
    other, heads = make_late(seed=9)
    resumed = make_cggm(heads, **settings).bind(other)
    other_optimizer = sgd(other, momentum=0.9)
    for target, state in zip((other, other_optimizer, resumed), torch.load(file), strict=True):
        target.load_state_dict(state)
    again = train(other, other_optimizer, resumed, BATCHES[5:])
    assert every(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert equal(network, other)
    assert equal(cggm, resumed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        PAPER,
        PAPER | {"terms": "released", "direction": "weights"},
        {"direction": None},
        {"rho": None},
        {"terms": "relu", "acts_on": "update"},
        {"terms": "softmax", "warmup": 2},
        {"gate": None},
        {"gate": "signal", "gain": "batch", "terms": "released", "direction": "weights"},
    ],
)
def test_every_setting_trains(settings):
    network, heads = make_late()
    start = copy.deepcopy(network)
    cggm = make_cggm(heads, **settings).bind(network)
    terms = train(network, sgd(network), cggm, BATCHES)
    assert every(t.isfinite().all() for t in terms)
    assert not equal(network, start)
    gate = {"gate"} if settings.get("gate", "signal") else set()
    assert set(cggm.readings) == {"score", "raw_term", "term", "cosine", "head_loss"} | gate


def test_permuted_modalities_permute_the_terms():
    order = [2, 0, 1]
    network, heads = make_late()
    names = [NAMES[i] for i in order]
    permuted, _ = make_late()
    permuted.encoders = nn.ModuleDict({n: network.encoders[n] for n in names})
    permuted = copy.deepcopy(permuted)
    weight = network.fusion[0].weight.detach().view(6, 3, 6)
    permuted.fusion[0].weight.data = weight[:, order].reshape(6, 18).clone()
    permuted.fusion[0].bias.data = network.fusion[0].bias.data.clone()
    cggm = make_cggm(heads, gain="batch").bind(network)
    other = make_cggm({n: copy.deepcopy(heads[n]) for n in names}, gain="batch").bind(permuted)
    ours = train(network, sgd(network), cggm, BATCHES[:4])
    theirs = train(permuted, sgd(permuted), other, [(x[:, order], y) for x, y in BATCHES[:4]])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a[order], b, rtol=1e-4, atol=1e-5)


class Scripted:
    """A score that says what it was told, head by head."""

    def __init__(self, rows):
        self.values = [v for row in rows for v in row]

    def __call__(self, prediction, target):
        return torch.tensor(self.values.pop(0))


def test_paper_setting_on_hand_computed_numbers():
    network, heads = make_late()
    scores = [[0.2, 0.1, 0.1], [0.5, 0.2, 0.2], [0.4, 0.4, 0.2]]
    cggm = CGGM(heads, nn.functional.cross_entropy, Scripted(scores), **(PAPER | {"rho": 1.2}))
    cggm.bind(network)
    terms = train(network, sgd(network), cggm, BATCHES[:3])
    # gains: (.2 .1 .1)/.4, then (.3 .1 .1)/.5, then (-.1 .2 0)/.1
    assert_close(terms[0], torch.tensor([0.6, 0.9, 0.9]))
    assert_close(terms[1], torch.tensor([0.48, 0.96, 0.96]))
    assert_close(terms[2], torch.tensor([2.4, -1.2, 1.2]), rtol=1e-5, atol=1e-6)


def test_gated_setting_on_hand_computed_numbers():
    network, heads = make_late()
    # each head's score and chance: signals .4 .1 0, gates 1 .25 0, gated gains .5 .05 0
    scores = [[0.5, 0.1, 0.2, 0.1, 0.1, 0.1]]
    cggm = CGGM(
        heads, nn.functional.cross_entropy, Scripted(scores), gain="batch", terms="raw",
        rho=1.2, gate="signal",
    ).bind(network)  # fmt: skip
    (terms,) = train(network, sgd(network), cggm, BATCHES[:1])
    assert_close(cggm.readings["gate"], torch.tensor([1.0, 0.25, 0.0]))
    by_hand = [2 / 3 + 0.25 * (1 / 11 - 2 / 3), 2 / 3 + 0.25 * (10 / 11 - 2 / 3), 2 / 3]
    assert_close(terms, 1.2 * torch.tensor(by_hand))


def test_a_useless_modality_is_told_from_the_others():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    batches = [late_batch(64, seed=seed) for seed in range(150)]
    alone = [(x, x[:, 0, :4].argmax(1)) for x, _ in batches]
    train(network, sgd(network), cggm, alone)
    gates, terms = cggm.readings["gate"], cggm.readings["term"]
    assert gates[0] == 1
    assert gates[1:].max() < 0.3
    assert (terms - 1).abs().max() < 0.3


@pytest.mark.parametrize("gate", [None, "signal"])
def test_total_loss_is_equation_13(gate):
    network, heads = make_late()
    cggm = make_cggm(heads, gain="batch", lam=0.3, rho=1.2, gate=gate).bind(network)
    inputs, target = BATCHES[0]
    prediction = network(inputs)
    total = cggm(prediction, target)
    task = nn.functional.cross_entropy(prediction, target)
    (fused,) = torch.autograd.grad(task, network.output_layer.weight, retain_graph=True)
    expected = task
    weights = cggm.readings["term"] * cggm.readings.get("gate", 1.0)
    for name, term in zip(NAMES, weights, strict=True):
        head = heads[name]
        alone = nn.functional.cross_entropy(
            head(network.encoders[name](inputs[:, NAMES.index(name)])), target
        )
        (own,) = torch.autograd.grad(alone, head.output_layer.weight)
        cosine = nn.functional.cosine_similarity(fused.flatten(), own.flatten(), dim=0)
        expected = expected + 0.3 / 3 * (term.abs() - term * cosine)
    assert_close(total, expected)


def test_direction_loss_reaches_encoders_fusion_and_head():
    network, heads = make_late()
    cggm = make_cggm(heads, rho=None, lam=1.0).bind(network)
    inputs, target = BATCHES[0]
    prediction = network(inputs)
    loss = cggm(prediction, target) - nn.functional.cross_entropy(prediction, target)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    assert every(g.abs().sum() > 0 for g in gradients)


def test_released_setting_aligns_last_steps_weights():
    network, heads = make_late()
    scores = [[0.2, 0.1, 0.1], [0.5, 0.2, 0.2]]
    cggm = CGGM(
        heads,
        nn.functional.cross_entropy,
        Scripted(scores),
        gain="batch",
        terms="released",
        direction="weights",
        rho=1.3,
        lam=0.5,
        gate=None,
    ).bind(network)
    optimizer = sgd(network)
    weight = network.output_layer.weight.detach().clone().requires_grad_()
    by_hand = torch.zeros(())
    for name, term in zip(NAMES, (0.5, 0.75, 0.75), strict=True):
        own = heads[name].output_layer.weight.detach().clone()
        cosine = nn.functional.cosine_similarity(weight.flatten(), own.flatten(), dim=0)
        by_hand = by_hand + (term - term * cosine) / 3
    inputs, target = BATCHES[0]
    prediction = network(inputs)
    first = cggm(prediction, target)
    assert_close(first, nn.functional.cross_entropy(prediction, target))
    first.backward()
    optimizer.step()
    inputs, target = BATCHES[1]
    prediction = network(inputs)
    second = cggm(prediction, target)
    task = nn.functional.cross_entropy(prediction, target)
    assert_close(second, task + 0.5 * by_hand)
    parameters = list(network.parameters())
    both = torch.autograd.grad(second, parameters, retain_graph=True)
    alone = torch.autograd.grad(task, parameters)
    late = torch.autograd.grad(0.5 * by_hand, weight)[0]
    for p, a, b, term_owner in zip(parameters, both, alone, range(len(parameters)), strict=True):
        if p is network.output_layer.weight:
            assert_close(a - b, late, rtol=1e-4, atol=1e-7)
        elif term_owner >= len(list(network.encoders.parameters())):
            assert_close(a, b)


def test_a_copy_of_a_bound_network_is_not_seen():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    inputs, _ = BATCHES[0]
    network(inputs)
    copy.deepcopy(network)(inputs * 2).sum().backward()
    assert torch.equal(cggm.binding.take().features["text"], network.encoders["text"](inputs[:, 0]))


def test_heads_do_not_touch_the_network():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    inputs, target = BATCHES[0]
    cggm(network(inputs), target)
    assert every(p.grad is None for p in network.parameters())
    gathered = cggm.heads.window.named("gradient/")
    assert set(gathered) == {name for name, _ in cggm.heads.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_coefficients_in_full_precision(dtype):
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    optimizer = sgd(network)
    full, other = make_late()
    reference = make_cggm(other).bind(full)
    for inputs, target in BATCHES[:4]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = cggm(network(inputs), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        train(full, sgd(full), reference, [(inputs, target)])
        for key, value in cggm.readings.items():
            assert value.dtype == torch.float32, key
        assert_close(cggm.readings["cosine"], reference.readings["cosine"], rtol=0.1, atol=0.05)
    assert cggm.scores.steps == 4


def test_activation_checkpointing_gives_the_same_step():
    class Checkpointed(Late):
        def forward(self, inputs):
            parts = [
                checkpoint(e, x, use_reentrant=self.reentrant)
                for e, x in zip(self.encoders.values(), inputs.unbind(1), strict=True)
            ]
            return self.output_layer(self.fusion(torch.cat(parts, -1)))

    network, heads = make_late()
    saved = copy.deepcopy(heads)
    torch.manual_seed(0)
    other = Checkpointed()
    other.reentrant = False
    assert equal(network, other)
    terms = train(network, sgd(network), make_cggm(heads).bind(network), BATCHES[:5])
    again = train(other, sgd(other), make_cggm(saved).bind(other), BATCHES[:5])
    assert every(torch.equal(a, b) for a, b in zip(terms, again, strict=True))
    assert equal(network, other)
    other.reentrant = True
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        train(
            other,
            sgd(other),
            make_cggm(copy.deepcopy(heads)).bind(other),
            [(BATCHES[0][0].requires_grad_(), BATCHES[0][1])],
        )


@pytest.mark.parametrize("bind_first", [True, False])
def test_compiled_network_gives_the_same_terms(bind_first):
    network, heads = make_late()
    saved = copy.deepcopy(heads)
    compiled = copy.deepcopy(network)
    terms = train(network, sgd(network), make_cggm(heads).bind(network), BATCHES[:3])
    cggm = make_cggm(saved)
    if bind_first:
        cggm.bind(compiled)
        fast = torch.compile(compiled, backend="aot_eager")
    else:
        fast = torch.compile(compiled, backend="aot_eager")
        cggm.bind(fast)
    again = train(fast, sgd(compiled), cggm, BATCHES[:3])
    torch.compiler.reset()
    for a, b in zip(terms, again, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"acts_on": "update"}, {"direction": "weights"}, {"gate": "signal"}]
)
def test_a_step_never_waits_for_the_device(settings):
    network, heads = make_late()
    cggm = make_cggm(heads, warmup=1, **settings).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    train(network, optimizer, cggm, BATCHES[:2])
    with NoSynchronization():
        for inputs, target in BATCHES[2:4]:
            optimizer.zero_grad(set_to_none=False)
            for _ in range(2):
                cggm(network(inputs), target).backward()
            optimizer.step()
    with pytest.raises(AssertionError), NoSynchronization():
        cggm.readings["term"][0].item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.0}, "`rho` to be positive"),
        ({"lam": -1.0}, "`lam`"),
        ({"gain": "epoch"}, "`gain` to be one of"),
        ({"terms": "tanh"}, "`terms` to be one of"),
        ({"direction": "gradient"}, "`direction` to be one of.*'gradients'"),
        ({"acts_on": "loss"}, "`acts_on`"),
        ({"gate": "noise"}, "`gate` to be one of.*'signal'"),
        ({"betas": (0.99, 0.9)}, "`betas`"),
        ({"warmup": -1}, "`warmup`"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_cggm({n: LinearHead() for n in NAMES}, **settings)


def test_a_score_that_is_not_finite_moves_nothing():
    network, heads = make_late()
    rows = [[0.2, 0.1, 0.1], [float("nan"), 0.2, 0.2], [0.4, 0.4, 0.2]]
    cggm = CGGM(heads, nn.functional.cross_entropy, Scripted(rows), **(PAPER | {"terms": "abs"}))
    cggm.bind(network)
    terms = train(network, sgd(network), cggm, BATCHES[:3])
    # the first modality stays at 0.2, so its gains are 0 and then 0.2
    assert_close(terms[1], torch.tensor([1.0, 0.5, 0.5]))
    assert_close(terms[2], torch.tensor([0.5, 0.5, 1.0]))


def test_pair_scores_are_summed_before_they_are_divided():
    network, heads = make_late()
    counts = iter([(1, 2), (0, 8)])

    def score(prediction, target):
        above, below = score.now
        return torch.tensor([float(above), 0.0]), torch.tensor([float(below), 0.0])

    cggm = CGGM(heads, nn.functional.cross_entropy, score).bind(network)
    inputs, target = BATCHES[0]
    for score.now in counts:
        cggm(network(inputs), target).backward()
    # (1 + 0) / (2 + 8) and 0 / 0 = 1
    assert_close(cggm.readings["score"], torch.full((3,), 0.55))


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, nesterov=True, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("acts_on", ["gradient", "update"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name, acts_on):
    network, heads = make_late()
    cggm = make_cggm(heads, acts_on=acts_on).bind(network)
    optimizer = OPTIMIZERS[name](network.parameters())
    inputs, target = BATCHES[0]
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = cggm(network(inputs), target)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(30):
        if name == "LBFGS":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    assert cggm.scores.steps == 30
    assert losses[-1] < losses[0] - 0.05


def test_a_fused_optimizer_that_a_scaler_skips_moves_no_state():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for factor, steps in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(cggm(network(BATCHES[0][0]), BATCHES[0][1]) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert cggm.scores.steps == steps


@pytest.mark.parametrize("setting", ["terms", "direction", "acts_on", "gate", "rho"])
def test_a_word_that_is_no_choice_is_refused(setting):
    with pytest.raises(ValueError, match=f"Expected `{setting}` to be one of .* got 'other'"):
        make_cggm(make_late()[1], **{setting: "other"})
