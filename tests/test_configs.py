"""Every configuration file is read, and every method file builds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cggm.errors import UserError
from cggm.methods import build_balancer, find_method
from cggm.runs.cli import parse_arguments
from cggm.runs.config import read_config
from cggm.trials import Trials
from cggm_cls.training.config import DROPOUT_PLACES
from cggm_seg.networks import MultiEncoderDeepLabV3Plus
from cggm_seg.training.config import BratsConfig
from pipelines.arrays_train import ArraysConfig
from pipelines.food101_train import FoodConfig
from pipelines.htad_train import HtadConfig
from pipelines.iemocap_train import IemocapConfig
from pipelines.mfeat_train import MfeatConfig
from pipelines.mosi_train import MosiConfig
from tests.cggm.networks import NAMES, LinearHead, accuracy, make_late

CONFIGS = Path(__file__).parent.parent / "configs"
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
SCHEMAS = {
    "brats": BratsConfig,
    "mosi": MosiConfig,
    "iemocap": IemocapConfig,
    "food101": FoodConfig,
    "mfeat": MfeatConfig,
    "htad": HtadConfig,
    "arrays": ArraysConfig,
}
BASES = sorted(file for data in SCHEMAS for file in (CONFIGS / data).glob("*.yaml"))


def name(path):
    return f"{path.parent.name}/{path.stem}"


def test_every_configuration_belongs_to_a_schema():
    assert sorted(CONFIGS.glob("*/*.yaml")) == sorted([*BASES, *METHODS])


@pytest.mark.parametrize("base", BASES, ids=name)
@pytest.mark.parametrize("method", METHODS, ids=lambda p: p.stem)
def test_every_method_builds_on_every_data_set(base, method):
    config = read_config(SCHEMAS[base.parent.name], [base, method])
    trials = Trials(make_late()[0], nn.CrossEntropyLoss(), iter, iter, torch.optim.SGD)
    parts = {
        "task_loss": nn.CrossEntropyLoss,
        "heads": lambda: {n: LinearHead() for n in NAMES},
        "score": lambda: accuracy,
        "samples": lambda: 16,
        "trials": lambda: trials,
        "held_out": lambda: trials,
    }
    balancer = build_balancer(config.balancer.name, config.balancer.settings, parts)
    assert type(balancer).__name__ == config.balancer.name


def test_recommended_recipe_is_the_papers_but_for_what_was_measured():
    paper, train = (
        read_config(BratsConfig, [CONFIGS / "brats" / f"{name}.yaml"])
        for name in ("paper", "train")
    )
    assert (paper.loss.dice, paper.slices.focus) == ("foreground", "lesion")
    changed = {
        "amp": True,
        "loss": replace(paper.loss, dice="regions"),
        "slices": replace(paper.slices, focus="regions"),
        "network": replace(paper.network, dense=False),
        "balancer": replace(paper.balancer, settings={"rho": None, "direction": None}),
    }
    assert replace(paper, **changed) == train


@pytest.mark.parametrize(
    ("name", "dice", "focus"), [("demo", "regions", "regions"), ("quick", "foreground", "lesion")]
)
def test_recipes_name_their_dice_and_their_slices(name, dice, focus):
    # Laid over train.yaml, as the command does it.
    files = [CONFIGS / "brats" / "train.yaml", CONFIGS / "brats" / f"{name}.yaml"]
    config = read_config(BratsConfig, files)
    assert (config.loss.dice, config.slices.focus) == (dice, focus)


def test_configuration_of_an_older_run_means_what_it_meant(tmp_path):
    older = tmp_path / "config.yaml"
    older.write_text("max_epochs: 2\nloss: {ce_weight: 1.0}\nslices: {size: 64}\n")
    config = read_config(BratsConfig, [older])
    assert (config.loss.dice, config.slices.focus) == ("foreground", "lesion")


def test_paper_is_the_papers_recipe():
    config = read_config(BratsConfig, [CONFIGS / "brats" / "paper.yaml"])
    assert (config.max_epochs, config.batch_size, config.slices.size) == (75, 64, 160)
    assert config.network.encoder_name == "resnet101"
    with torch.device("meta"):
        network = MultiEncoderDeepLabV3Plus(dense=True)
    # 235.23 million in the released code
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(235.23e6, rel=1e-3)
    assert config.network.dense
    assert config.optimizer.lr_peak == 0.01
    settings = {"rho": 1.0, "lam": 0.1, "gain": "batch", "terms": "raw"}
    assert config.balancer.settings == {**settings, "direction": "gradients", "gate": None}


@pytest.mark.parametrize(
    ("data", "layers", "optimizer", "batch_size", "settings"),
    [
        ("mosi", (5, 3), ("adam", 0.0), 64, {"rho": 1.3, "lam": 0.2}),
        ("iemocap", (4, 2), ("adamw", 0.01), 64, {"rho": 1.2, "lam": 0.1}),
        ("food101", (4, 2), ("adamw", 0.006), 128, {"rho": 1.3, "lam": 0.05}),
    ],
)
def test_sizes_and_rates_are_the_papers(data, layers, optimizer, batch_size, settings):
    config = read_config(SCHEMAS[data], [CONFIGS / data / "train.yaml"])
    network, step = config.network, config.optimizer
    assert (network.width, network.attention_heads) == (40, 5)
    assert (network.encoder_layers, network.fusion_layers) == layers
    assert (step.name, step.weight_decay) == optimizer
    assert (step.lr, step.head_lr, step.clip_norm) == (0.001, 0.0005, 0.8)
    files = [CONFIGS / data / "train.yaml", CONFIGS / "methods" / "cggm.yaml"]
    cggm = read_config(SCHEMAS[data], files).balancer.settings
    assert (config.batch_size, {key: cggm[key] for key in settings}) == (batch_size, settings)


@pytest.mark.parametrize(
    ("data", "places", "step"),
    [
        ("mosi", (0.15, 0.15, 0.2, 0.1, 0.1), ("adam", 0.0)),
        ("iemocap", (0.15, 0.15, 0.2, 0.15, 0.2), ("adamw", 0.01)),
        ("food101", (0.2, 0.15, 0.2, 0.15, 0.1), ("adamw", 0.006)),
    ],
)
def test_recommended_recipes_of_sequences_are_the_papers_but_for_what_is_listed(data, places, step):
    """The table of docs/sequences.md."""
    files = [CONFIGS / data / "train.yaml", CONFIGS / data / "paper.yaml"]
    train, paper = (read_config(SCHEMAS[data], files[:count]) for count in (1, 2))
    assert paper.network.dropout == dict(zip(DROPOUT_PLACES, places, strict=True))
    assert (paper.optimizer.name, paper.optimizer.weight_decay) == step
    changed = {
        "network": replace(paper.network, dropout=0.1, readout="token"),
        "optimizer": replace(
            paper.optimizer,
            plateau="score",
            head_weight_decay=train.optimizer.head_weight_decay,
        ),
        "balancer": train.balancer,
    }
    assert replace(paper, **changed) == train
    assert (paper.balancer.name, paper.balancer.head_layers) == ("CGGM", 2)
    assert paper.balancer.head_dropout
    files = [CONFIGS / data / "train.yaml", CONFIGS / "methods" / "cggm_paper.yaml"]
    assert paper.balancer.settings == read_config(SCHEMAS[data], files).balancer.settings
    assert (train.balancer.head_layers, train.balancer.head_dropout) == (1, False)


def test_chains_are_laid_over_a_configuration():
    argv = ["--method", "mrd+unimodal_losses+cggm"]
    config, _ = parse_arguments(
        MosiConfig,
        None,
        argv,
        defaults=CONFIGS / "mosi" / "train.yaml",
        methods=CONFIGS / "methods",
    )
    assert config.balancer.name == "ModalityDropout+UnimodalLosses+CGGM"
    assert config.balancer.settings["UnimodalLosses"] == {"weight": 1.0}
    assert config.balancer.settings["CGGM"]["rho"] == 1.3
    for chain, reason in (("qmf+reconboost", "different networks"), ("cggm+joint", "twice")):
        with pytest.raises(UserError, match=reason):
            parse_arguments(
                MosiConfig,
                None,
                ["--method", chain],
                defaults=CONFIGS / "mosi" / "train.yaml",
                methods=CONFIGS / "methods",
            )


@pytest.mark.parametrize("data", SCHEMAS)
def test_what_a_script_does_without_a_method_is_a_file_of_methods_too(data):
    base = [CONFIGS / data / "train.yaml"]
    name = "joint" if data == "brats" else "guided"
    alone = read_config(SCHEMAS[data], base).balancer
    method = read_config(SCHEMAS[data], [*base, CONFIGS / "methods" / f"{name}.yaml"]).balancer
    assert alone.name == method.name
    pair = [_built(balancer) for balancer in (alone, method)]
    assert pair[0] == pair[1]


@pytest.mark.parametrize("data", SCHEMAS)
def test_cggm_balances_whatever_it_is_laid_over(data):
    files = [CONFIGS / data / "train.yaml", CONFIGS / "methods" / "cggm.yaml"]
    found = _built(read_config(SCHEMAS[data], files).balancer)
    assert (found["direction"], found["gate"], found["acts_on"]) == (
        "gradients", "signal", "gradient"
    )  # fmt: skip
    assert found["rho"] > 0


def _built(balancer):
    heads = {n: LinearHead() for n in NAMES}
    built = find_method(balancer.name)(heads, nn.L1Loss(), accuracy, **balancer.settings)
    keys = ("rho", "lam", "terms", "direction", "acts_on", "gate", "warmup", "mu", "nu", "shares")
    keys += ("temperature", "switch", "factors", "seed")
    return {key: getattr(built, key) for key in keys if hasattr(built, key)}


@pytest.mark.parametrize(
    ("data", "paper", "released"),
    [
        ("mosi", (1.3, 0.2), (1.3, 0.2)),
        ("iemocap", (1.2, 0.1), (1.3, 0.2)),
        ("food101", (1.3, 0.05), (1.3, 0.05)),
        ("brats", (1.0, 0.1), (1.0, 0.1)),
    ],
)
def test_cggm_of_paper_and_release_has_rho_and_lambda_of_the_data_set(data, paper, released):
    for name, expected in (("cggm_paper", paper), ("cggm_released", released)):
        files = [CONFIGS / data / "train.yaml", CONFIGS / "methods" / f"{name}.yaml"]
        settings = read_config(SCHEMAS[data], files).balancer.settings
        assert (settings["rho"], settings["lam"]) == expected
        assert settings["gain"] == "batch"


@pytest.mark.parametrize("text", ["tasks: 3\n", "tasks: {mosi: 2}\nbalancer: {name: OGM}\n"])
def test_settings_by_task_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match="unknown key `tasks"):
        read_config(MosiConfig, [tmp_path / "own.yaml"])


@pytest.mark.parametrize("file", [*BASES, *METHODS], ids=name)
def test_files_begin_with_a_comment(file):
    assert file.read_text().startswith("# ")
