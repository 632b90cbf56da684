"""Tiny runs to be exported."""

import json
from pathlib import Path

import torch
from torch import nn

from cggm.runs.checkpoints import RunProgress, save_checkpoint
from cggm.runs.config import read_config, write_config
from cggm.runs.folder import RunFolder
from cggm_seg.networks.deeplab import MultiEncoderDeepLabV3Plus
from cggm_seg.training.balancing import UnimodalDecoder
from cggm_seg.training.config import BratsConfig

CONFIG = """
max_epochs: 3
modalities: [flair, t1ce]
network: {encoder_name: tu-test_byobnet, decoder_channels: 8, low_level_channels: 4}
"""


def finished_run(folder: Path) -> tuple[RunFolder, MultiEncoderDeepLabV3Plus]:
    """Makes the folder of a run with a checkpoint, heads in it, and simulated results."""
    run = RunFolder.create(folder, name="tiny")
    (folder / "tiny.yaml").write_text(CONFIG)
    config = read_config(BratsConfig, [folder / "tiny.yaml"])
    write_config(config, run.config)
    torch.manual_seed(0)
    network = config.network.build(config.used)
    _spread_classes(network)
    heads = nn.ModuleDict({name: UnimodalDecoder(8, 4, 4) for name in config.used})
    save_checkpoint(run.checkpoints, network, {"balancer": heads}, RunProgress(3, 30, score=0.5))
    results = {"simulated": True, "validation": {"dice_ET": 0.25, "dice_TC": 0.5, "dice_WT": 0.75}}
    run.results.write_text(json.dumps(results))
    split = {"training": ["a", "b", "c"], "validation": ["d", "e"]}
    (folder / "split.json").write_text(json.dumps(split))
    return run, network


def _spread_classes(network: MultiEncoderDeepLabV3Plus) -> None:
    """Lets an untrained network predict every class somewhere."""
    nn.init.normal_(network.output_layer.weight)
    with torch.no_grad():
        logits = network.eval()(torch.randn(2, len(network.modalities), 64, 64))
        network.output_layer.bias -= logits.mean((0, 2, 3))
