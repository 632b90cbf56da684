"""Calls, steps, types and life cycles that do not fit: each works, or is named once."""

import copy
import gc
import io
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optimizers
from torch.testing import assert_close

from cggm import CGGM, Balancer
from tests.cggm.networks import NAMES, Late, LinearHead, accuracy, late_batch, make_cggm, make_late
from tests.quantifiers import every, none

INPUTS, TARGET = late_batch()


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


def steps(network, balancer, count=3, **settings):
    optimizer = sgd(network.parameters(), **settings)
    for _ in range(count):
        optimizer.zero_grad()
        balancer(network(INPUTS), TARGET).backward()
        optimizer.step()


def test_a_network_in_eval_mode_that_is_trained_is_refused_at_its_first_step():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    network.eval()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match=r"training mode while it trains.*network.train\(\)"):
        steps(network, cggm)
    assert every(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    torch.nn.functional.cross_entropy(network(INPUTS), TARGET).backward()
    optimizer.step()  # of the loop's own, which is told nothing of the refused one


def test_validation_with_gradients_is_no_training():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    network.eval()
    cggm(network(INPUTS), TARGET)
    network.train()
    steps(network, cggm)
    assert cggm.clock.steps == 3


@pytest.mark.parametrize("frozen", ["output_layer", "encoders"])
def test_parts_in_eval_mode_train_like_the_rest(frozen):
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    getattr(network, frozen).eval()
    steps(network, cggm)
    assert cggm.calls == cggm.clock.steps == 3


@pytest.mark.parametrize("to_none", [True, False])
def test_updates_by_hand_are_missed_once_and_seen_where_they_are_announced(to_none):
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    start = cggm.heads.output_weight("text").clone()

    def update():
        for parameter in network.parameters():
            parameter.data -= 0.1 * parameter.grad

    def train():
        for _ in range(25):
            network.zero_grad(set_to_none=to_none)
            cggm(network(INPUTS), TARGET).backward()
            update()

    with pytest.warns(RuntimeWarning, match=r"called 20 times.*no optimizer step.*updating\(\)"):
        train()
    assert torch.equal(cggm.heads.output_weight("text"), start)
    network.zero_grad()
    cggm(network(INPUTS), TARGET).backward()
    with cggm.updating():
        update()
    assert cggm.clock.steps == 1
    assert not torch.equal(cggm.heads.output_weight("text"), start)


def test_an_announced_update_is_scaled_like_an_optimizers():
    ends = []
    for by_hand in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads, acts_on="update", gate=None, gain="batch").bind(network)
        optimizer = sgd(network.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            cggm(network(INPUTS), TARGET).backward()
            if by_hand:
                with cggm.updating(), torch.no_grad():
                    for parameter in network.parameters():
                        parameter.add_(parameter.grad, alpha=-0.1)
            else:
                optimizer.step()
        ends.append([p.detach() for p in network.parameters()])
    for p, q in zip(*ends, strict=True):
        assert_close(p, q)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_closure_equals_plain_steps(optimizer):
    ends = []
    for closed in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads, acts_on="update", gate=None, gain="batch").bind(network)
        chosen = optimizer(network.parameters(), lr=0.1)

        def evaluate(network=network, cggm=cggm):
            loss = cggm(network(INPUTS), TARGET)
            loss.backward()
            return loss

        for _ in range(4):
            if closed:
                chosen.step(closure=evaluate)
            else:
                evaluate()
                chosen.step()
            chosen.zero_grad()
        assert cggm.clock.steps == 4
        ends.append([p.detach() for p in network.parameters()])
    for p, q in zip(*ends, strict=True):
        assert torch.equal(p, q)


def test_gradients_are_edited_at_the_end_of_a_closure():
    """A closure fills gradients within the step; what was there before is not what steps."""
    seen = []

    class Noted(Balancer):
        def edit_gradients(self):
            seen.append((self.micro_batches, float(network.output_layer.weight.grad.abs().sum())))

    network, _ = make_late()
    balancer = Noted(nn.CrossEntropyLoss()).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def evaluate():
        optimizer.zero_grad()
        loss = balancer(network(INPUTS), TARGET)
        loss.backward()
        return loss

    for step in (1, 2):
        optimizer.step(evaluate)
        assert len(seen) == step
        assert seen[-1][0] == 1
        assert seen[-1][1] == float(network.output_layer.weight.grad.abs().sum())


def test_two_optimizers_scale_their_own_updates_and_step_once():
    ends = []
    for split in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads, acts_on="update", gate=None, gain="batch").bind(network)
        first = list(network.encoders["text"].parameters())
        rest = [p for p in network.parameters() if every(p is not q for q in first)]
        chosen = [sgd(first), sgd(rest)] if split else [sgd([*first, *rest])]
        for _ in range(3):
            network.zero_grad()
            cggm(network(INPUTS), TARGET).backward()
            for optimizer in chosen:
                optimizer.step()
        assert cggm.clock.steps == 3
        ends.append([p.detach() for p in network.parameters()])
    for p, q in zip(*ends, strict=True):
        assert torch.equal(p, q)


class Repeated(Late):
    """Calls its output layer once for each of three states, or once on all of them."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def decode(self, features):
        state = self.fusion(torch.cat(list(features.values()), -1))
        states = [state * factor for factor in (1.0, 0.5, 0.1)]
        if self.calls == 1:
            return self.output_layer(torch.stack(states, 1))
        return torch.stack([self.output_layer(state) for state in states], 1)


def test_calls_of_the_output_layer_add_up():
    def loss(prediction, target):
        if prediction.ndim == 2:
            return F.cross_entropy(prediction, target[:, 0])
        return F.cross_entropy(prediction.flatten(0, 1), target.flatten())

    target = torch.stack([TARGET, TARGET.roll(1), TARGET.roll(2)], 1)
    found = []
    for calls in (1, 3):
        torch.manual_seed(0)
        network = Repeated(calls)
        cggm = make_cggm({n: LinearHead() for n in NAMES}, lam=1.0, gate=None)
        cggm.task_loss = loss
        cggm.score = lambda p, t: -loss(p, t)
        cggm.bind(network)(network(INPUTS), target).backward()
        parameters = torch.cat([p.grad.flatten() for p in network.parameters()])
        found.append(torch.cat([cggm.readings["cosine"], parameters]))
    assert found[0][:3].abs().min() > 1e-3
    assert_close(*found)


def test_a_forward_pass_of_another_loss_is_told_apart():
    network, heads = make_late()
    cggm = make_cggm(heads, gate=None).bind(network)
    expected = make_cggm(copy.deepcopy(heads), gate=None).bind(twin := copy.deepcopy(network))
    expected(twin(INPUTS), TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = network(INPUTS)
        unlabeled = network(torch.randn_like(INPUTS))  # comes between the pass and the criterion
        loss = cggm(prediction, TARGET)
    (loss + unlabeled.square().mean()).backward()
    assert torch.equal(cggm.readings["score"], expected.readings["score"])
    assert torch.equal(cggm.readings["head_loss"], expected.readings["head_loss"])


def test_an_encoder_that_sees_two_views_is_mentioned_once():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)

    def train():
        for _ in range(3):
            cggm(network(INPUTS) + network(INPUTS.flip(1)), TARGET).backward()

    with pytest.warns(RuntimeWarning, match="was called several times.*last") as caught:
        train()
    assert sorted(str(w.message).split("'")[1] for w in caught) == sorted(NAMES)


@pytest.mark.filterwarnings("ignore:.*was called several times")
def test_heads_judge_the_last_of_two_views():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    twin, alike = make_late()
    expected = make_cggm(alike).bind(twin)
    cggm(network(INPUTS.flip(1)) + network(INPUTS), TARGET)
    expected(twin(INPUTS), TARGET)
    assert torch.equal(cggm.readings["head_loss"], expected.readings["head_loss"])


def test_heads_that_another_optimizer_holds_step_once():
    moved = []
    for shared in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
        start = cggm.heads.output_weight("text").clone()
        more = list(cggm.parameters()) if shared else []
        optimizer = torch.optim.SGD([*network.parameters(), *more], lr=0.1, weight_decay=0.1)
        optimizer.zero_grad()
        cggm(network(INPUTS), TARGET).backward()
        optimizer.step()
        moved.append((cggm.heads.output_weight("text") - start).detach())
    assert moved[0].abs().max() > 0
    assert torch.equal(*moved)


SCORES = {
    "a number": lambda p, t: accuracy(p, t).item(),
    "a NumPy number": lambda p, t: np.float64(accuracy(p, t).item()),
    "one per sample": lambda p, t: (p.argmax(1) == t).float(),
    "an array": lambda p, t: (p.argmax(1) == t).numpy(),
    "a pair": lambda p, t: ((p.argmax(1) == t).sum(), len(t)),
}


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_any_kind_are_taken_as_meant(kind):
    found = []
    for score in (accuracy, SCORES[kind]):
        network, heads = make_late()
        cggm = make_cggm(heads, gate=None)
        cggm.score = score
        steps(network, cggm.bind(network), 1)
        found.append(cggm.readings["score"])
    assert_close(*found)


@pytest.mark.parametrize("value", ["high", {"score": 1.0}, torch.ones(5)])
def test_other_scores_are_named(value):
    network, heads = make_late()
    cggm = make_cggm(heads, gate=None).bind(network)
    cggm.score = lambda prediction, target: value
    with pytest.raises(ValueError, match=r"Expected `score` to return a number.*but got"):
        cggm(network(INPUTS), TARGET)


def test_a_loss_per_sample_is_named():
    network, _ = make_late()
    balancer = Balancer(nn.CrossEntropyLoss(reduction="none")).bind(network)
    with pytest.raises(ValueError, match=r"`task_loss` to return a scalar.*shape \(16,\)"):
        balancer(network(INPUTS), TARGET)


def test_predictions_in_a_dict_and_encoders_in_a_list():
    class Network(Late):
        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleList(self.encoders.values())

        def forward(self, inputs):
            pairs = zip(self.encoders, inputs.unbind(1), strict=True)
            return {"logits": self.decode({str(i): e(x) for i, (e, x) in enumerate(pairs)})}

    class Head(LinearHead):
        def forward(self, features):
            return {"logits": super().forward(features)}

    plain, heads = make_late()
    torch.manual_seed(0)
    network = Network()
    others = {str(i): Head() for i in range(3)}
    for head, (_, like) in zip(others.values(), heads.items(), strict=True):
        head.load_state_dict(like.state_dict())
    cggm = CGGM(
        others,
        lambda p, t: F.cross_entropy(p["logits"], t),
        lambda p, t: accuracy(p["logits"], t),
        head_optimizer=sgd,
    )
    steps(network, cggm.bind(network))
    steps(plain, make_cggm(heads).bind(plain))
    assert cggm.binding.names == ["0", "1", "2"]
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("power", [1, 2])
def test_a_loss_without_second_derivative_names_the_setting(power):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().mean()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * 2 * x / x.numel()

    for direction in ("gradients", None):
        network, heads = make_late()
        cggm = make_cggm(heads, direction=direction)
        cggm.task_loss = lambda prediction, target: Once.apply(prediction) ** power
        cggm.bind(network)
        if direction is None:
            cggm(network(INPUTS), TARGET).backward()
        else:
            with pytest.raises(ValueError, match=r"differentiated twice.*Use direction=None"):
                cggm(network(INPUTS), TARGET)


def test_features_come_in_the_type_of_the_heads():
    class Network(Late):
        def decode(self, features):
            return super().decode({name: x.float() for name, x in features.items()})

    torch.manual_seed(0)
    network = Network()
    network.encoders.bfloat16()
    cggm = make_cggm({n: LinearHead() for n in NAMES}).bind(network)
    optimizer = sgd(network.parameters())
    pairs = zip(network.encoders.items(), INPUTS.bfloat16().unbind(1), strict=True)
    cggm(network.decode({n: e(x) for (n, e), x in pairs}), TARGET).backward()
    optimizer.step()
    assert cggm.heads.output_weight("text").dtype == torch.float32
    assert cggm.readings["head_loss"].isfinite().all()


def test_a_bound_network_and_its_balancer_can_be_copied_and_saved():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    steps(network, cggm)
    prediction = network(INPUTS)  # whose graph is pending
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(network)):
        assert torch.equal(other(INPUTS), prediction)
        assert other(INPUTS).sum().backward() is None
    twin = copy.deepcopy(cggm)
    assert not twin.bound
    assert cggm.bound
    assert every(torch.equal(v, twin.state_dict()[k]) for k, v in tensors(cggm).items())
    twin.bind(copy.deepcopy(network))
    file = io.BytesIO()
    torch.save(cggm, file)
    file.seek(0)
    assert not torch.load(file, weights_only=False).bound


def tensors(module):
    return {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def test_states_are_loaded_as_weights_only():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    steps(network, cggm)
    file = io.BytesIO()
    torch.save(cggm.state_dict(), file)
    file.seek(0)
    cggm.load_state_dict(torch.load(file, weights_only=True))


def test_forgotten_trials_are_freed_and_leave_no_hook():
    hooks = len(optimizers._global_optimizer_pre_hooks)
    trials = []
    for _ in range(5):
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
        steps(network, cggm, 1)
        network(INPUTS)  # without a call of the criterion
        trials += [weakref.ref(network.encoders["text"]), weakref.ref(cggm)]
    del network, heads, cggm
    gc.collect()
    assert [ref() for ref in trials] == [None] * 10
    assert len(optimizers._global_optimizer_pre_hooks) == hooks


@pytest.mark.parametrize("error", [KeyError, RuntimeError, KeyboardInterrupt])
def test_any_error_in_prepare_leaves_no_hook(error):
    class Refusing(Balancer):
        def prepare(self, binding):
            raise error("no")

    network, _ = make_late()
    balancer = Refusing(F.cross_entropy)
    with pytest.raises(error):
        balancer.bind(network)
    assert not balancer.bound
    assert none(module._forward_hooks for module in network.modules())


def test_a_head_that_is_lost_is_mentioned_once():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    with torch.no_grad():
        cggm.heads.output_weight("audio").fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="head of 'audio' has weights that are not") as caught:
        steps(network, cggm, 5)
    cggm.start_epoch(2)
    assert len(caught) == 1
    assert every(p.isfinite().all() for p in network.parameters())


def test_the_raw_term_is_the_papers_ratio_of_batch_gains():
    network, heads = make_late()
    cggm = make_cggm(heads, rho=1.0).bind(network)
    last = torch.zeros(3)
    optimizer = sgd(network.parameters())
    for seed in range(3):
        inputs, target = late_batch(seed=seed)
        optimizer.zero_grad()
        cggm(network(inputs), target).backward()
        gains = cggm.readings["score"] - last
        last = cggm.readings["score"].clone()
        neutral = torch.full((3,), 2 / 3)
        expected = 1 - gains / gains.sum() if gains.sum() != 0 else neutral
        assert_close(cggm.readings["raw_term"], expected)
        optimizer.step()


def test_a_step_may_be_abandoned_before_any_was_begun():
    network, heads = make_late()
    cggm = make_cggm(heads)
    cggm.abandon()
    assert cggm.bind(network).micro_batches == 0


def test_norms_are_measured_where_someone_asks():
    for asked in (False, True):
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
        cggm.measure_norms = cggm.measure_norms or asked
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        cggm(network(INPUTS), TARGET).backward()
        optimizer.step()
        assert (cggm.norms is not None) == asked
