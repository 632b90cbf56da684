import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from cggm.errors import UserError
from cggm_seg.data.cases import MODALITIES
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.losses import SoftDiceCELoss
from tests.quantifiers import every

torch.set_num_threads(1)  # threads cost more than they bring on tiny tensors
SMALL = "tu-mobilenetv3_small_050"


def small_network(modalities=MODALITIES, **settings):
    torch.manual_seed(0)
    settings = {"encoder_name": SMALL, "decoder_channels": 16, "low_level_channels": 8} | settings
    return MultiEncoderDeepLabV3Plus(modalities, **settings)


@pytest.fixture(scope="module")
def network():
    return small_network().eval()


@pytest.mark.parametrize("encoder_name", [SMALL, "tu-lcnet_050", "tu-regnetx_002", "resnet18"])
def test_features_and_logits_have_their_shapes(encoder_name):
    network = small_network(("flair", "t2"), encoder_name=encoder_name, classes=3).eval()
    images = torch.randn(1, 2, 64, 96)
    for feature in network.encode(images).values():
        assert feature["high"].shape == (1, 16, 4, 6)
        assert feature["low"].shape == (1, 8, 16, 24)
    assert network(images).shape == (1, 3, 64, 96)


def test_modalities_do_not_see_each_other(network):
    images = torch.randn(1, 4, 32, 32)
    other = images.clone()
    other[:, 1] += 1
    before, after = network.encode(images), network.encode(other)
    assert list(before) == list(MODALITIES)
    for name in MODALITIES:
        same = every(torch.equal(before[name][key], after[name][key]) for key in ("high", "low"))
        assert same == (name != "t1ce")
    assert not torch.equal(network.decode(before), network.decode(after))


def test_every_parameter_is_trained():
    network = small_network(aspp_dropout=0.0)
    network(torch.randn(2, 4, 32, 32)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without


def test_default_atrous_rates_are_not_degenerate():
    rates = {
        module.dilation
        for name, module in small_network().encoders["t1"].named_modules()
        if name.startswith("aspp") and isinstance(module, nn.Conv2d)
    }
    assert rates == {(1, 1), (2, 2), (4, 4), (6, 6)}


def test_logits_do_not_depend_on_the_batch(network):
    images = torch.randn(3, 4, 32, 48)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_batch_of_one_is_refused_only_while_batch_norm_trains():
    network = small_network()
    with pytest.raises(ValueError, match="batch of at least 2"):
        network(torch.randn(1, 4, 32, 32))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert network(torch.randn(1, 4, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 4, 40, 48), "multiples of 16, but got 40x48"), ((1, 3, 32, 32), "4 channels")],
)
def test_shapes_that_do_not_fit_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape))


@pytest.mark.parametrize("encoder_name", ["densenet121", "tu-vgg11", "resnet1", "tu-x"])
def test_encoder_without_output_stride_16_is_refused(encoder_name):
    with pytest.raises(UserError, match=encoder_name):
        small_network(("flair",), encoder_name=encoder_name)


@pytest.mark.parametrize("modalities", [(), ("t1", "t1")])
def test_modalities_must_be_distinct(modalities):
    with pytest.raises(ValueError, match="distinct"):
        small_network(modalities)


def test_bfloat16_and_channels_last_change_little():
    network = small_network(("t1",), encoder_name="tu-lcnet_050").eval()
    images = torch.randn(1, 1, 32, 32)
    expected = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images.to(memory_format=torch.channels_last))
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


def test_double_backward_passes_a_compiled_decoder():
    # What the direction loss does: the gradient at the output layer is differentiated once more.
    network = small_network()
    loss_function = SoftDiceCELoss()
    seen = {}
    network.output_layer.register_forward_hook(
        lambda module, inputs, output: seen.update(features=inputs[0], logits=output)
    )
    features = network.encode(torch.randn(2, 4, 32, 32))
    features = {n: {k: f.detach() for k, f in d.items()} for n, d in features.items()}
    target = torch.randint(0, 4, (2, 32, 32))
    gradients = []
    for decode in (network.decode, torch.compile(network.decode, backend="aot_eager")):
        loss = loss_function(decode(features), target)
        (delta,) = torch.autograd.grad(loss, seen["logits"], create_graph=True)
        last_layer = torch.einsum("bchw,bdhw->cd", delta, seen["features"])
        last_layer.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.decoder.parameters()])
        network.zero_grad()
    assert any(g.abs().max() > 0 for g in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_encoder_weights_are_loaded_with_colors_summed(tmp_path, suffix):
    state = get_encoder("resnet18", in_channels=3, weights=None).state_dict()
    file = tmp_path / f"encoder{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, file)
    network = small_network(("t1", "t2"), encoder_name="resnet18", encoder_weights=file)
    for encoder in network.encoders.values():
        torch.testing.assert_close(
            encoder.encoder.conv1.weight, state["conv1.weight"].sum(1, keepdim=True)
        )
        assert torch.equal(encoder.encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_encoder_weights_that_cannot_be_read_are_refused(tmp_path, content):
    file = tmp_path / "encoder.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.pt"):
        small_network(("t1",), encoder_weights=file)


def test_encoder_weights_of_another_encoder_are_refused(tmp_path):
    file = tmp_path / "encoder.pt"
    torch.save(get_encoder("resnet18", in_channels=1, weights=None).state_dict(), file)
    with pytest.raises(UserError, match="same smp encoder"):
        small_network(("t1",), encoder_weights=file)
