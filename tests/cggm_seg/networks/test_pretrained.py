"""Weights of an encoder are taken from the files in which people keep them, or refused."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder

from cggm.errors import UserError
from cggm_seg.networks.pretrained import load_pretrained
from tests.quantifiers import every

NAME = "tu-lcnet_050"


def encoder(channels=1, seed=0):
    torch.manual_seed(seed)
    return get_encoder(NAME, in_channels=channels, weights=None, output_stride=16)


@pytest.fixture(scope="module")
def state():
    return encoder(seed=1).state_dict()


FORMS = {
    "plain.pt": lambda state: state,
    "lightning.ckpt": lambda state: {"epoch": 3, "state_dict": state, "callbacks": {"a": {}}},
    "ddp.pt": lambda state: {f"module.{key}": value for key, value in state.items()},
    "deep.pt": lambda state: {
        "model": {f"net.encoder.{key}": value for key, value in state.items()}
        | {"head.weight": torch.zeros(2)}
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_a_state_dict_is_found_wherever_it_is(name, state, tmp_path):
    torch.save(FORMS[name](state), tmp_path / name)
    own = encoder()
    load_pretrained(own, tmp_path / name)
    assert every(torch.equal(value, state[key]) for key, value in own.state_dict().items())


def test_colors_are_summed_and_safetensors_are_read(tmp_path):
    colored = encoder(channels=3, seed=1).state_dict()
    save_file(colored, tmp_path / "rgb.safetensors")
    own = encoder()
    load_pretrained(own, tmp_path / "rgb.safetensors")
    first, *others = own.state_dict()
    assert torch.equal(own.state_dict()[first], colored[first].sum(1, keepdim=True))
    assert every(torch.equal(own.state_dict()[key], colored[key]) for key in others)


def refusal(file):
    with pytest.raises(UserError) as caught:
        load_pretrained(encoder(), file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert "weights_only" not in message
    return message


def test_what_cannot_be_taken_is_one_line_that_names_the_file(state, tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.pt")
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "code.pt")
    assert "holds more than tensors" in refusal(tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "code.pt").read_bytes()[:1000])
    assert "damaged" in refusal(tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 100)
    assert "damaged" in refusal(tmp_path / "cut.safetensors")
    (tmp_path / "folder.pt").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "folder.pt")


def test_another_encoder_and_several_are_refused(state, tmp_path):
    *kept, last = state
    torch.save({key: state[key] for key in kept}, tmp_path / "lacking.pt")
    count = len(state)
    assert f"expected {count} tensors of this encoder, but 1 are absent" in refusal(
        tmp_path / "lacking.pt"
    )
    assert last in refusal(tmp_path / "lacking.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    assert f"but {count} are absent" in refusal(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert f"but {count} are absent" in refusal(tmp_path / "list.pt")
    torch.save({"state_dict": state, "ema": dict(state)}, tmp_path / "two.pt")
    assert "those of several: ema/*, state_dict/*" in refusal(tmp_path / "two.pt")
