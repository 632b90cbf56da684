"""A sample of one rank that spoils its loss, under two ranks that torchrun starts."""

import pickle
import re

import numpy as np
import pytest
from safetensors.torch import load_file

from cggm.runs.watch.logs import read_jsonl
from cggm_cls.data.mosi.simulation import simulate_mosi
from tests.pipelines.launching import run_all
from tests.quantifiers import every

TINY = """
max_epochs: 3
batch_size: 8
device: cpu
subsets: false
curves: false
report: false
network: {width: 8, attention_heads: 2, encoder_layers: 1, fusion_layers: 1}
"""
BAD = 40
LARGE = np.float32(3e38)  # finite, as data must be, but no longer once it is weighed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that skips, and what torchrun said of it and of one that does not."""
    folder = tmp_path_factory.mktemp("nonfinite")
    data, config = folder / "mosi.pkl", folder / "tiny.yaml"
    simulate_mosi(data, train=64, valid=16, test=16)
    with data.open("rb") as stream:
        content = pickle.load(stream)
    content["train"]["text"][BAD, :3] = LARGE
    data.write_bytes(pickle.dumps(content))
    config.write_text(TINY)
    common = ("mosi_train", "--data", data, "--config", config, "--output")
    said = run_all(
        (*common, folder / "skips", "--skip_nonfinite", "true"), (*common, folder / "stops")
    )
    return folder, said


def test_both_skip_the_step_in_which_one_of_them_is_spoilt(trained):
    folder, (_, _, err) = trained
    assert err.count("error: ") == 1, err  # of the second command
    metrics = read_jsonl(folder / "skips" / "metrics.jsonl")
    # At the end of each epoch the ranks compare weights, coefficients and state, bit for bit.
    assert [line.get("skipped_steps") for line in metrics] == [1, 1, 1]
    assert (folder / "skips" / "results.json").exists()
    last = sorted((folder / "skips" / "checkpoints").iterdir())[-1] / "model.safetensors"
    assert every(value.isfinite().all() for value in load_file(last).values())


def test_the_samples_of_its_rank_alone_are_named(trained):
    folder, (code, _, err) = trained
    assert code == 1  # torchrun's own
    [named] = re.findall(r"the loss is nan on the samples (.*?)\. ", err)
    assert len(named.split(", ")) == 4  # of the 8 in the batch
    assert f"train{BAD:04}" in named
    assert "--skip_nonfinite goes on without them" in err
    [steps] = re.findall(r"Epoch 1, iteration (\d+): ", err)
    [saved] = (folder / "stops" / "checkpoints").iterdir()
    assert saved.name == f"epoch-0000-step-{int(steps) - 1:08}"
