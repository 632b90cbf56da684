"""Model card and label colors: what a user of an exported network has to know."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm import __version__
from cggm.reports import asset
from cggm.runs import NUMBER, RunFolder, check_form, read_json
from cggm_seg.data import has_simulated_cases
from cggm_seg.evaluation import CLASS_NAMES, CLASSES
from cggm_seg.training import BratsConfig

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


_RESULTS = {"simulated?": (bool, None), "validation?": {"*": NUMBER}, "*": object}
_SPLIT = {"training": [str], "validation": [str], "*": object}


@dataclass(frozen=True)
class Facts:
    """What is known of an exported run.

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
    results, split = _read(run.results, _RESULTS), _read(run.split, _SPLIT)
    simulated = results.get("simulated")
    if simulated is None and config.data is not None and config.data.is_dir():
        simulated = has_simulated_cases(config.data)
    metrics = {k.removeprefix("dice_"): v for k, v in results.get("validation", {}).items()}
    cases = (len(split["training"]), len(split["validation"])) if split else None
    return Facts(config, epoch, simulated, metrics, cases)


def model_card(facts: Facts) -> str:
    """The model card, Markdown; its text is ``assets/model_card.md``."""
    used = facts.config.used
    return asset("model_card.md", "cggm_seg.export").format(
        method=facts.config.balancer.name,
        warning=f"\n> {SIMULATED}\n" if facts.simulated else "",
        encoder=facts.config.network.encoder_name,
        modalities=", ".join(used),
        channels=len(used),
        epoch=facts.epoch,
        seed=facts.config.seed,
        version=__version__,
        classes=numbered_classes(),
        count=CLASSES,
        intended_use=INTENDED_USE,
        data=facts.data,
        simulated=" (SIMULATED)" if facts.simulated else "",
        metrics=_table(facts.metrics) if facts.metrics else "Not evaluated.",
        references="\n".join(f"- {line}" for line in REFERENCES),
    )


def numbered_classes() -> str:
    """The classes with their numbers, in one line."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(CLASS_NAMES))


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


def _table(metrics: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return "\n".join(["| region | mean Dice |", "|---|---|", *rows])


def _read(file: Path, form: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = read_json(file, missing_ok=True)
    check_form(content, form if content else {}, file)
    return content
