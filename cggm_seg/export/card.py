"""What a user of an exported network has to know: the model card and the label colors."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cggm.runs import RunFolder
from cggm_seg.training import BratsConfig

CLASSES = ("background", "necrotic tumor core", "peritumoral edema", "enhancing tumor")

INTENDED_USE = (
    "Research on the segmentation of brain tumors in MRI. It is no medical device: not for "
    "diagnosis, treatment or any other decision about a patient."
)
SIMULATED = (
    "The training data are SIMULATED: lesions painted into the ICBM152 anatomy. Nothing that was "
    "measured on them says anything about patients, and on images of patients the network is of "
    "no use."
)
REFERENCES = (
    "Guo et al. Classifier-guided gradient modulation for enhanced multimodal learning. "
    "NeurIPS 2024.",
    "Menze et al. The multimodal brain tumor image segmentation benchmark (BRATS). "
    "IEEE Transactions on Medical Imaging 34(10), 2015.",
    "Baid et al. The RSNA-ASNR-MICCAI BraTS 2021 benchmark on brain tumor segmentation and "
    "radiogenomic classification. arXiv:2107.02314, 2021.",
)


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    Attributes:
        config: Its configuration.
        epoch: Epochs behind the exported checkpoint.
        simulated: Whether the training data are simulated; ``None`` if that is not known.
        metrics: Region to mean Dice of the validation cases; empty where nothing was evaluated.
        cases: Numbers of training and validation cases, if known.
    """

    config: BratsConfig
    epoch: int
    simulated: bool | None
    metrics: dict[str, float]
    cases: tuple[int, int] | None

    @property
    def data(self) -> str:
        """What the network was trained on, one sentence or more."""
        counts = "{} cases, {} more for validation".format(*self.cases) if self.cases else "cases"
        known = {True: SIMULATED, False: "", None: "Whether they are simulated is not on record."}
        return f"Trained on {counts}, in the layout of BraTS. {known[self.simulated]}".strip()


def read_facts(run: RunFolder, config: BratsConfig, epoch: int) -> Facts:
    """Collect what a run left behind.

    Args:
        run: The run.
        config: Its configuration.
        epoch: Epochs behind the exported checkpoint.
    """
    results, split = _read(run.results), _read(run.path / "split.json")
    simulated = results.get("simulated")
    if simulated is None and config.data is not None and config.data.is_dir():
        simulated = (config.data / "cohort.json").is_file()
    metrics = {k.removeprefix("dice_"): v for k, v in results.get("validation", {}).items()}
    cases = (len(split["training"]), len(split["validation"])) if split else None
    return Facts(config, epoch, simulated, metrics, cases)


def model_card(facts: Facts) -> str:
    """The model card, Markdown."""
    used, network = facts.config.used, facts.config.network
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in facts.metrics.items())
    table = f"| region | mean Dice |\n|---|---|\n{scores}" if scores else "Not evaluated."
    warning = f"\n> {SIMULATED}\n" if facts.simulated else ""
    return f"""# Model card: BraTS segmentation, {facts.config.balancer.name}
{warning}
## What it is

A two-dimensional DeepLabv3+ with one {network.encoder_name} encoder for each of {", ".join(used)},
trained with {facts.config.balancer.name} for {facts.epoch} epochs, seed {facts.config.seed};
written by cggm {version("cggm")}. It maps axial slices to the classes {_classes()}.
The heads that judged the encoders during training are no part of it.

## Intended use

{INTENDED_USE}

## Data and license

{facts.data}

The weights derive from the training data, so the terms of your copy of these data hold for them
too. Those who use BraTS data agree to cite the references below. The code is under Apache-2.0.

## Input and output

`images`, float32, shape `(B, {len(used)}, H, W)`: axial slices, the channels {", ".join(used)}; H
and W are multiples of 16, at least 32 (pad with zeros). The volumes are skull-stripped, registered
to one grid and have background 0. Each modality is a z-score over its own non-zero voxels of the
whole volume; the background stays 0. Slices are cut to the box around the brain, on the 16-voxel
grid of the whole slice.

All {len(used)} channels have to be there: a missing modality is a channel of zeros, at a loss that
the table of subsets of the run states.

`logits`, float32, shape `(B, {len(CLASSES)}, H, W)`; the largest decides. In label files ET is 4
(BraTS 2021) or 3 (BraTS 2023).

## Metrics

Validation cases{" (SIMULATED)" if facts.simulated else ""}, whole volumes. These cases chose the
checkpoint: on new cases expect less.

{table}

## Limits

- It sees single slices, no neighbors.
- Known are preoperative adult gliomas as in BraTS; other tumors, treated brains, children, and
  images that are not skull-stripped are not.
- Other scanners and protocols than those of the training data were not tried.
- Its probabilities are not calibrated.

## References

{_bullets(REFERENCES)}
"""


def color_table() -> str:
    """A color table of 3D Slicer for label maps of both naming schemes.

    The colors are those of the overlays, apart for every kind of color vision.
    """
    return """# Color table file for 3D Slicer: value, name, red, green, blue, opacity
0 background 0 0 0 0
1 necrotic_tumor_core 204 51 119 255
2 peritumoral_edema 86 180 233 255
3 enhancing_tumor_2023 230 159 0 255
4 enhancing_tumor_2021 230 159 0 255
"""


def _classes() -> str:
    return ", ".join(f"{index} {name}" for index, name in enumerate(CLASSES))


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content
