"""MONAI bundle of the network, which needs torch and monai alone."""

import json
import shutil
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from cggm.runs import read_json
from cggm_seg.evaluation import CLASS_NAMES
from cggm_seg.export.card import INTENDED_USE, REFERENCES, Facts, numbered_classes
from cggm_seg.export.program import export_program, write_program
from cggm_seg.networks import MultiEncoderDeepLabV3Plus

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
_SUFFIXES = {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2"}


def write_bundle(
    network: MultiEncoderDeepLabV3Plus, folder: Path, facts: Facts, template: Path
) -> None:
    """Fills a folder with a bundle: the template, a graph, the weights and the metadata.

    The graph stands in for the network's code, so that the bundle does not depend on this project
    or on smp; it has no weights, which lie in ``models/model.pt`` where bundles have them.

    Args:
        network: The network.
        folder: Where to; it exists.
        facts: What is known of the run.
        template: Folder of the files that all bundles share.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(template, folder, dirs_exist_ok=True, ignore=ignored)
    # What prepared the images of the training; it needs numpy alone.
    own = files("cggm_seg.data") / "preprocessing.py"
    (folder / "scripts" / "preprocessing.py").write_text(own.read_text("utf-8"))
    (folder / "models").mkdir()
    write_program(export_program(network, weights=False), folder / "models" / "network.pt2", {})
    weights = BytesIO()
    torch.save(_on_cpu(network), weights)
    (folder / "models" / "model.pt").write_bytes(weights.getbuffer())  # says why it cannot
    inference = folder / "configs" / "inference.json"
    config = read_json(inference)
    config["suffixes"] = [_SUFFIXES[name] for name in facts.config.used]
    _write(inference, config)
    _write(folder / "configs" / "metadata.json", metadata(facts))


def metadata(facts: Facts) -> dict[str, Any]:
    """The metadata of a bundle, in the keys of MONAI's schema."""
    used = facts.config.used
    packages = ("nibabel", "pytorch-ignite", "fire")
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported after {facts.epoch} epochs"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in packages},
        "name": f"BraTS segmentation, {facts.config.balancer.name}",
        "task": "Segmentation of brain tumors in multimodal MRI",
        "description": f"Slice-wise DeepLabv3+ with one encoder for each of {', '.join(used)}. "
        f"{facts.data}",
        "authors": "The authors of cggm",
        "copyright": "Code: Apache-2.0. Weights: the terms of the training data, see MODEL_CARD.md",
        "data_source": facts.data,
        "data_type": "nibabel",
        "image_classes": f"{', '.join(used)}; z-scores over the brain of each",
        "pred_classes": numbered_classes(),
        "eval_metrics": {f"mean_dice_{name}": value for name, value in facts.metrics.items()},
        "intended_use": INTENDED_USE,
        "references": list(REFERENCES),
        "network_data_format": {
            "inputs": {"image": _tensor("magnitude", used, "MR")},
            "outputs": {"pred": _tensor("labels", CLASS_NAMES, "n/a")},
        },
    }


def _tensor(kind: str, channels: tuple[str, ...], modality: str) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "modality": modality,
        "num_channels": len(channels),
        "spatial_shape": ["16*n", "16*n"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }


def _on_cpu(network: MultiEncoderDeepLabV3Plus) -> dict[str, torch.Tensor]:
    return {key: value.to("cpu", copy=True) for key, value in network.state_dict().items()}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=4) + "\n", "utf-8")
