"""Networks and loops of other people: gradients as by hand, or one message that says why."""

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from cggm import Balancer
from tests.cggm.networks import NAMES, Late, LinearHead, late_batch, make_cggm, make_late
from tests.quantifiers import every

INPUTS, TARGET = late_batch()
FACTORS = {"text": 0.5, "audio": 3.0, "video": 0.0}


class Fixed(Balancer):
    """Scales by given factors."""

    serves_absence = True

    def scales(self, step):
        return torch.tensor(list(FACTORS.values()))


class Own(Late):
    """A network whose encoders' outputs are wrapped, and unwrapped again before the fusion."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.unwrap = unwrap
        for name, encoder in self.encoders.items():
            self.encoders[name] = Wrapping(encoder, wrap)

    def decode(self, features):
        return super().decode({name: self.unwrap(x) for name, x in features.items()})


class Wrapping(nn.Module):
    def __init__(self, encoder, wrap):
        super().__init__()
        self.encoder, self.wrap = encoder, wrap

    def forward(self, x):
        return self.wrap(self.encoder(x))


class Sealed:
    """Lets nobody set its attributes."""

    __slots__ = ("__values",)

    def __init__(self, values):
        object.__setattr__(self, "_Sealed__values", values)

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def values(self):
        return self.__values


@dataclass(frozen=True, slots=True)
class Frozen:
    values: torch.Tensor
    count: int = 3


def jagged(x):
    return torch.nested.as_nested_tensor(list(x[:, :, None]), layout=torch.jagged)


OUTPUTS = {
    "a class that lets nobody set its attributes": (Sealed, Sealed.values),
    "a frozen dataclass with slots": (Frozen, lambda x: x.values),
    "a jagged tensor": (jagged, lambda x: torch.nested.to_padded_tensor(x, 0.0)[:, :, 0]),
    "complex numbers": (lambda x: torch.complex(x, 2 * x), lambda x: x.real + x.imag),
    "a number beside": (lambda x: {"x": x, "sum": x.sum()}, lambda x: x["x"] + x["sum"]),
    "views": (lambda x: x.chunk(2, -1), lambda x: torch.cat(x, -1)),
    "expanded": (lambda x: x[:, None].expand(-1, 4, -1), lambda x: x.sum(1)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_any_class_are_scaled(kind):
    torch.manual_seed(0)
    network = Own(*OUTPUTS[kind])
    plain = copy.deepcopy(network)
    F.cross_entropy(plain(INPUTS), TARGET).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fixed(F.cross_entropy).bind(network)(network(INPUTS), TARGET).backward()
    for name, factor in FACTORS.items():
        pairs = zip(
            network.encoders[name].parameters(), plain.encoders[name].parameters(), strict=True
        )
        for own, other in pairs:
            assert other.grad.abs().sum() > 0
            assert_close(own.grad, factor * other.grad)


def test_nested_tensors_of_the_strided_layout_are_named():
    torch.manual_seed(0)
    network = Own(lambda x: torch.nested.as_nested_tensor(list(x)), lambda x: x)
    Fixed(F.cross_entropy).bind(network)
    with pytest.raises(ValueError, match=r"encoder 'text'.*strided.*layout=torch.jagged"):
        network(INPUTS)


def test_transforms_of_torch_func_are_named():
    network, _ = make_late()
    balancer = Fixed(F.cross_entropy).bind(network)

    def loss(parameters):
        return balancer(torch.func.functional_call(network, parameters, (INPUTS,)), TARGET)

    with pytest.raises(
        ValueError, match=r"encoder 'text'.*outside of the transforms of torch.func"
    ):
        torch.func.grad(loss)(dict(network.named_parameters()))
    loss(dict(network.named_parameters())).backward()


def kept_by_its_encoder(network):
    kept = {}
    network.encoders["text"][1].register_forward_hook(lambda m, a, out: kept.update(x=out))
    return lambda: network(INPUTS) + kept["x"][:, :4]


def module_called_alone(network):
    return lambda: network(INPUTS) + network.encoders["text"][0](INPUTS[:, 0])[:, :4]


def weight_used_elsewhere(network):
    network.fusion[2] = nn.Linear(6, 6)
    network.fusion[2].weight = network.encoders["text"][2].weight
    return lambda: network(INPUTS)


@pytest.mark.parametrize("path", [kept_by_its_encoder, module_called_alone, weight_used_elsewhere])
def test_a_path_around_what_the_encoder_returns_is_named_once(path):
    network, _ = make_late()
    forward = path(network)
    balancer = Fixed(F.cross_entropy).bind(network)

    def train():
        for _ in range(3):
            balancer(forward(), TARGET).backward()

    with pytest.warns(RuntimeWarning, match="encoder 'text' by another path") as caught:
        train()
    assert len(caught) == 1


def test_what_feeds_several_encoders_is_named_and_what_feeds_one_belongs_to_it():
    def messages(forward):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Fixed(F.cross_entropy).bind(network)(forward(), TARGET).backward()
        return [str(w.message).split("'")[1] for w in caught if "takes what" in str(w.message)]

    network, _ = make_late()
    stem = nn.Linear(5, 5)
    assert messages(lambda: network(stem(INPUTS))) == list(NAMES)
    network, _ = make_late()

    def alone():
        text, *others = INPUTS.unbind(1)
        pairs = zip(network.encoders.items(), [stem(text), *others], strict=True)
        return network.decode({name: encoder(x) for (name, encoder), x in pairs})

    assert messages(alone) == []

    def chained():
        text = network.encoders["text"](INPUTS[:, 0])
        audio = network.encoders["audio"](text[:, :5])
        video = network.encoders["video"](INPUTS[:, 2])
        return network.decode({"text": text, "audio": audio, "video": video})

    network, _ = make_late()
    assert messages(chained) == ["audio"]


def test_a_scaler_that_skips_many_steps_is_no_missing_optimizer():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = cggm(network(INPUTS), TARGET)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert 0 < cggm.clock.steps < 20


def test_masks_hold_for_one_call_also_in_validation():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    network.eval()
    with torch.no_grad():
        cggm.present({"text": False})
        cggm(network(INPUTS), TARGET)
    network.train()
    cggm(network(INPUTS), TARGET)
    assert cggm.readings["head_loss"].isfinite().all()


def test_features_with_another_first_axis_are_refused_where_samples_lack_a_modality():
    torch.manual_seed(0)
    network = Own(lambda x: (x, x[None].expand(2, -1, -1)), lambda x: x[0] + x[1].sum(0))
    balancer = Fixed(F.cross_entropy).bind(network)
    balancer.present({"audio": torch.arange(16) < 9})
    with pytest.raises(ValueError, match=r"batch of 16 samples as the first axis.*'audio'"):
        balancer(network(INPUTS), TARGET)


def test_a_number_among_the_features_belongs_to_no_sample():
    torch.manual_seed(0)
    network = Own(*OUTPUTS["a number beside"])
    balancer = Fixed(F.cross_entropy).bind(network)
    balancer.present({"audio": torch.arange(16) < 9})
    balancer(network(INPUTS), TARGET).backward()
    assert every(p.grad.isfinite().all() for p in network.parameters())


def test_a_second_balancer_takes_the_place_of_a_forgotten_one():
    network, heads = make_late()
    plain = copy.deepcopy(network)
    forgotten = make_cggm(heads).bind(network)
    with pytest.warns(RuntimeWarning, match=r"Another balancer was bound.*unbound now"):
        balancer = Fixed(F.cross_entropy).bind(network)
    assert not forgotten.bound
    balancer(network(INPUTS), TARGET).backward()
    F.cross_entropy(plain(INPUTS), TARGET).backward()
    for own, other in zip(
        network.encoders["audio"].parameters(), plain.encoders["audio"].parameters(), strict=True
    ):
        assert_close(own.grad, 3.0 * other.grad)


def trained(names=NAMES, steps=3):
    torch.manual_seed(0)
    network = Late(names)
    cggm = make_cggm({name: LinearHead() for name in names}).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        cggm(network(INPUTS[:, : len(names)]), TARGET).backward()
        optimizer.step()
    return cggm


@pytest.mark.parametrize("names", [("audio", "text", "video"), ("a", "b", "c"), ("text", "audio")])
def test_a_state_of_other_modalities_is_refused(names):
    state, other = trained().state_dict(), trained(names)
    before = other.state_dict()[
        "heads.audio.output_layer.weight" if "audio" in names else "scores.last"
    ].clone()
    with pytest.raises(ValueError, match=r"state of a balancer of the modalities .*same order"):
        other.load_state_dict(state)
    after = other.state_dict()[
        "heads.audio.output_layer.weight" if "audio" in names else "scores.last"
    ]
    assert torch.equal(before, after)
    older = dict(state) | {"clock._extra_state": {"epoch": 0, "steps": 3}}
    trained().load_state_dict(older)


def test_casts_to_half_precision_leave_what_is_remembered_alone():
    cggm = trained()
    before = {n: b.clone() for n, b in cggm.scores.named_buffers()}
    cggm.bfloat16()
    assert cggm.heads.output_weight("text").dtype == torch.bfloat16
    for name, buffer in cggm.scores.named_buffers():
        assert torch.equal(buffer, before[name])


def test_averages_are_float32_also_where_half_precision_is_the_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        network, heads = make_late()
        cggm = make_cggm(heads).bind(network)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {b.dtype for b in cggm.scores.buffers()} == {torch.float32}


@pytest.mark.parametrize("how", ["loss", "prediction"])
def test_a_loss_without_a_graph_is_named(how):
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    prediction = network(INPUTS)
    if how == "prediction":
        prediction = prediction.detach()
    else:
        cggm.task_loss = lambda p, t: F.cross_entropy(p, t).detach()
    with pytest.raises(ValueError, match=r"Expected a loss with a gradient for the network"):
        cggm(prediction, TARGET)


def test_heads_whose_weight_is_not_their_own_are_named():
    heads = {name: LinearHead() for name in NAMES}
    heads["audio"].output_layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"`output_layer` of head 'audio'.*weight of its own"):
        make_cggm(heads)
    heads["audio"].output_layer = nn.LazyLinear(4)
    with pytest.raises(ValueError, match=r"UninitializedParameter. Run a lazy layer once"):
        make_cggm(heads)


def test_parameters_that_are_replaced_after_binding_are_found():
    network, heads = make_late()
    cggm = make_cggm(heads).bind(network)
    for module in [*network.encoders.modules(), network.output_layer]:
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().clone())
            module.bias = nn.Parameter(module.bias.detach().clone())
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(8):
        optimizer.zero_grad()
        cggm(network(INPUTS), TARGET).backward()
        optimizer.step()
    assert cggm.clock.steps >= 5


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_head_that_no_rank_had_a_sample_for_is_not_moved_by_its_momentum():
    network, heads = make_late()

    def momentum(parameters):
        return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1)

    cggm = make_cggm(heads, head_optimizer=momentum).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    moved = []
    for step in range(4):
        before = {name: cggm.heads.output_weight(name).clone() for name in NAMES}
        cggm.present({"text": step < 2})
        optimizer.zero_grad()
        cggm(network(INPUTS), TARGET).backward()
        optimizer.step()
        moved.append([bool((cggm.heads.output_weight(n) != before[n]).any()) for n in NAMES])
    assert moved == [[True] * 3] * 2 + [[False, True, True]] * 2


@pytest.mark.usefixtures("alone")
def test_the_static_graph_of_ddp_is_named(monkeypatch):
    network, heads = make_late()
    replica = nn.parallel.DistributedDataParallel(network, static_graph=True)
    monkeypatch.setattr("cggm.contract.world_size", lambda: 2)
    cggm = make_cggm(heads).bind(replica)
    with pytest.raises(ValueError, match="static_graph=False, because CGGM takes gradients"):
        cggm(replica(INPUTS), TARGET)
