"""Every configuration file is read, and every method file builds."""

from pathlib import Path

import pytest
from torch import nn

from cggm.methods.build import build_balancer
from cggm.runs.config import read_config
from cggm_seg.config import BratsConfig
from tests.cggm.networks import NAMES, LinearHead, accuracy

CONFIGS = Path(__file__).parent.parent / "configs"
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
BRATS = sorted((CONFIGS / "brats").glob("*.yaml"))


@pytest.mark.parametrize("base", BRATS, ids=lambda p: p.stem)
@pytest.mark.parametrize("method", METHODS, ids=lambda p: p.stem)
def test_method_on_brats(base, method):
    config = read_config(BratsConfig, [base, method])
    parts = {
        "task_loss": nn.CrossEntropyLoss,
        "heads": lambda: {n: LinearHead() for n in NAMES},
        "score": lambda: accuracy,
    }
    balancer = build_balancer(config.balancer.name, config.balancer.settings, parts)
    assert type(balancer).__name__ == config.balancer.name


def test_train_is_the_papers_recipe():
    config = read_config(BratsConfig, [CONFIGS / "brats" / "train.yaml"])
    assert (config.max_epochs, config.batch_size, config.slices.size) == (75, 64, 160)
    assert config.network.encoder_name == "resnet101"
    assert config.optimizer.lr_peak == 0.01
    assert config.balancer.settings == {"rho": 1.0, "lam": 0.1}


@pytest.mark.parametrize("file", [*BRATS, *METHODS], ids=lambda p: p.stem)
def test_files_begin_with_a_comment(file):
    assert file.read_text().startswith("# ")
