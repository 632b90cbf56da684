import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM
from cggm_cls.data.sequences import MaskedSequence
from cggm_cls.networks.layers import AttentionLayer, sinusoids
from cggm_cls.networks.transformer import MultimodalTransformer, sequence_heads
from cggm_cls.training.balancing import accuracy, negative_mae
from tests.cggm_cls.padding import PADDINGS, padded, ragged
from tests.quantifiers import every

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
WIDTHS = {"text": 6, "audio": 3}
LENGTHS = {"text": [4, 2, 5, 0], "audio": [7, 1, 0, 3]}
READOUTS = ["token", "first", "mean"]


def small_network(widths=WIDTHS, classes=3, **settings):
    torch.manual_seed(0)
    settings = {
        "width": 8,
        "attention_heads": 2,
        "encoder_layers": 2,
        "fusion_layers": 2,
        "dropout": 0.0,
    } | settings
    return MultimodalTransformer(widths, classes, **settings)


def small_inputs(padding="end"):
    return {name: padded(s, padding) for name, s in ragged(WIDTHS, LENGTHS).items()}


def outputs_and_gradients(network, inputs):
    output = network(inputs)
    network.zero_grad()
    torch.manual_seed(1)
    (output * torch.randn(output.shape)).sum().backward()
    return output, {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_changes_nothing(padding, readout, training):
    network = small_network(readout=readout).train(training)
    output, gradients = outputs_and_gradients(network, small_inputs())
    other, other_gradients = outputs_and_gradients(network, small_inputs(padding))
    torch.testing.assert_close(other, output, rtol=0, atol=1e-6)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", READOUTS)
def test_outputs_do_not_depend_on_the_batch(readout):
    network = small_network(readout=readout).eval()
    output = network(small_inputs())
    rows = [2, 0, 3]
    chosen = {n: MaskedSequence(v[rows], m[rows]) for n, (v, m) in small_inputs().items()}
    torch.testing.assert_close(network(chosen), output[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("absent", [["text"], ["audio"], ["text", "audio"]])
def test_absent_modalities_are_finite_and_unseen(absent, readout):
    network = small_network(readout=readout)
    inputs = small_inputs()
    for name in absent:
        inputs[name] = inputs[name]._replace(mask=torch.zeros_like(inputs[name].mask))
    output, gradients = outputs_and_gradients(network, inputs)
    assert output.isfinite().all()
    assert every(gradient.isfinite().all() for gradient in gradients.values())
    for name in absent:
        inputs[name] = MaskedSequence(torch.randn(4, 2, WIDTHS[name]), torch.zeros(4, 2).bool())
    torch.testing.assert_close(network(inputs), output, rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", READOUTS)
def test_every_real_step_and_its_place_count(readout):
    network = small_network(readout=readout).eval()
    inputs = small_inputs()
    output = network(inputs)
    for name, (values, mask) in inputs.items():
        shifted = values + mask[..., None] * torch.randn(values.shape[-1])
        changed = network(inputs | {name: MaskedSequence(shifted, mask)})
        reversed_ = network(inputs | {name: MaskedSequence(values.flip(1), mask.flip(1))})
        longer_than_one = torch.tensor(LENGTHS[name]) > 1
        for other, moved in (
            (changed, torch.tensor(LENGTHS[name]) > 0),
            (reversed_, longer_than_one),
        ):
            assert ((other - output).abs().amax(1) > 1e-4).tolist() == moved.tolist()


@pytest.mark.parametrize(
    "widths", [{"text": 6}, WIDTHS, {"a": 1, "b": 2, "c": 9, "d": 4}], ids=["one", "two", "four"]
)
@pytest.mark.parametrize("classes", [None, 1, 5])
def test_any_number_of_modalities_and_outputs(widths, classes):
    network = small_network(widths, classes)
    lengths = {name: [index + 1, 3] for index, name in enumerate(widths)}
    inputs = {name: padded(s) for name, s in ragged(widths, lengths).items()}
    output, gradients = outputs_and_gradients(network, inputs)
    assert output.shape == ((2,) if classes is None else (2, classes))
    assert network.output_layer.weight.shape == (classes or 1, 8)
    assert network.modalities == tuple(network.encoders) == tuple(widths)
    assert every(gradient is not None for gradient in gradients.values())


def test_encoders_take_and_give_masked_sequences_and_do_not_see_each_other():
    network = small_network().eval()
    inputs = small_inputs()
    encoded = network.encode(inputs)
    assert list(encoded) == ["text", "audio"]
    for name, (values, mask) in encoded.items():
        steps = inputs[name].mask.shape[1] + 1
        assert values.shape == (4, steps, 8)
        assert mask.sum(1).tolist() == [length + 1 for length in LENGTHS[name]]
    other = network.encode(inputs | {"audio": padded([torch.randn(2, 3)] * 4)})
    assert torch.equal(other["text"].values, encoded["text"].values)
    torch.testing.assert_close(network.decode(encoded), network(inputs))


def test_layers_of_an_encoder_get_scaled_steps_with_positions_and_a_token():
    encoder = small_network().encoders["audio"]
    encoder.stack = nn.Identity()
    values, mask = small_inputs()["audio"]
    embedded = encoder(MaskedSequence(values, mask)).values
    expected = 8**0.5 * encoder.projection(values) + sinusoids(mask, 8)
    torch.testing.assert_close(embedded[:, :-1][mask], expected[mask])
    assert torch.equal(embedded[:, :-1][~mask], torch.zeros(int((~mask).sum()), 8))
    assert torch.equal(embedded[:, -1], encoder.token.expand(4, 8))


def test_modalities_of_equal_content_are_told_apart():
    network = small_network({"a": 4, "b": 4}).eval()
    network.encoders["b"].load_state_dict(network.encoders["a"].state_dict())
    first, second = (padded([torch.randn(3, 4)]) for _ in range(2))
    output = network({"a": first, "b": second})
    assert (network({"a": second, "b": first}) - output).abs().max() > 1e-4


def test_layers_start_different():
    layers = [m for m in small_network().modules() if isinstance(m, AttentionLayer)]
    assert len(layers) == 6
    starts = [layer.self_attn.in_proj_weight for layer in layers]
    assert every(not torch.equal(a, b) for a in starts for b in starts if a is not b)


def test_paper_sizes():
    network = MultimodalTransformer({"text": 300, "audio": 5, "vision": 20}, None)
    # the released code's 371,721, four prediction tokens and three modality embeddings of width 40
    assert sum(p.numel() for p in network.parameters()) == 371_721 + 7 * 40


def test_dropout_is_everywhere_in_training_and_nowhere_in_evaluation():
    network = small_network(dropout=0.2)
    modules = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in modules] == [0.2] * (3 * 6 + 3 + 1)
    seen = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    inputs = small_inputs()
    network(inputs)
    assert len(seen) == len(set(seen)) == len(modules)
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


def test_inputs_that_do_not_fit_are_refused():
    network = small_network()
    inputs = small_inputs()
    with pytest.raises(ValueError, match=r"\['audio'\] are missing"):
        network({"text": inputs["text"]})
    with pytest.raises(ValueError, match=r"\['smell'\] unknown"):
        network(inputs | {"smell": inputs["text"]})
    with pytest.raises(ValueError, match="3 features in modality 'audio', but got 6"):
        network(inputs | {"audio": inputs["text"]})


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one modality"):
        small_network({})
    with pytest.raises(ValueError, match="got 'last'"):
        small_network(readout="last")


@pytest.mark.parametrize("classes", [None, 3])
def test_bfloat16_autocast_changes_little(classes):
    network = small_network(classes=classes, dropout=0.1).eval()
    expected = network(small_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        output = network(small_inputs())
        network.train()(small_inputs()).square().mean().backward()
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("classes", "readout", "direction"),
    [(None, "token", "gradients"), (3, "first", "gradients"), (3, "mean", "weights")],
)
def test_cggm_binds_and_the_loss_falls(classes, readout, direction):
    network = small_network(classes=classes, readout=readout, dropout=0.1)
    inputs = small_inputs()
    target = torch.tensor([0, 1, 2, 1])
    loss, score = (F.cross_entropy, accuracy) if classes else (F.l1_loss, negative_mae)
    target = target if classes else target.float()
    balancer = CGGM(sequence_heads(network), loss, score, direction=direction).bind(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    before = loss(network.eval()(inputs), target).item()
    network.train()
    for _ in range(20):
        optimizer.zero_grad()
        balancer(network(inputs), target).backward()
        optimizer.step()
    assert loss(network.eval()(inputs), target).item() < 0.8 * before
    assert balancer.readings["cosine"].abs().max() > 0
