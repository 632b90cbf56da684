import json
import signal
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cggm.runs.logs import read_jsonl
from cggm_seg.cases import MODALITIES
from tests.cggm_seg.nifti import case_file, write_case
from tests.pipelines.commands import call, left_over, start, tiny_config

SHAPE = (48, 40, 20)
EPOCHS = 4
NAMINGS = ("2021", "2023")
FIGURES = {"score", "raw_term", "term", "cosine", "head_loss", "gradient_norm"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for k in range(6):
        write_case(folder, f"case{k}", shape=SHAPE, naming=NAMINGS[k % 2], seed=k)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("config"), EPOCHS)


@pytest.fixture(scope="module")
def killed(cohort, config, tmp_path_factory):
    """A run whose process was killed after its second epoch, and what it had printed."""
    run = tmp_path_factory.mktemp("killed") / "run"
    argv = ("--data", cohort, "--config", config, "--output", run, "--workers", 1)
    process = start("train", *argv)
    while not (run / "checkpoints" / "epoch-0002").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return run, out, err


@pytest.fixture(scope="module")
def resumed(killed):
    run, _, _ = killed
    assert not (run / "checkpoints" / "epoch-0004").exists()
    assert call("train", "--resume", run) == 0
    return run


@pytest.fixture(scope="module")
def whole(cohort, config, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call("train", "--data", cohort, "--config", config, "--output", run) == 0
    return run


def weights(run, epoch=EPOCHS):
    return load_file(run / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors")


def test_time(killed, resumed, whole):
    print(killed[1], killed[2])
