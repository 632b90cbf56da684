"""What each method says of itself, row by row; the contract suite holds it to that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
_SO_FAR = "a micro-batch is judged by the window so far, not by all of it"


@dataclass(frozen=True)
class Contract:
    """One method's row.

    Attributes:
        neutral: Settings that equal joint training.
        settings: Settings under which the method acts within six steps in four epochs.
        named: Further settings by modality, for modalities that change places.
        task: Where it is tried if one task is enough.
        rules: How the network of each task fuses late; empty if it fuses features.
        refuses: Tasks that it cannot serve, and what it says.
        drawn: Readings drawn by the modalities' places, which do not change places with them. What
            is drawn leads the rest astray after the first step.
        ordered: Why coefficients stay in their places while modalities change theirs.
        windows: Why a batch in two micro-batches does not equal the batch; empty if it does.
        ranks: Why a batch in halves on two ranks does not equal the batch; empty if it does.
        acts: Whether the settings change anything.
        gated: Whether the network needs units by which modalities modulate each other.
    """

    neutral: Settings
    settings: Settings = field(default_factory=dict)
    named: Settings = field(default_factory=dict)
    task: str = "classification"
    rules: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    drawn: tuple[str, ...] | None = None
    ordered: str = ""
    windows: str = ""
    ranks: str = ""
    acts: bool = True
    gated: bool = False


CONTRACTS = {
    "AGM": Contract({"alpha": 0.0}, windows=_SO_FAR),
    "Balancer": Contract({}, acts=False),
    "CGGM": Contract(
        {"rho": None, "direction": None},
        windows=_SO_FAR,
        ranks="the gate's chance comes from the targets of a rank",
    ),
    "ConstantFactors": Contract(
        {"factors": 1.0}, named={"factors": {"text": 0.2, "audio": 0.6, "video": 0.9}}
    ),
    "DGL": Contract({"alpha": 0.0, "detach": False}),
    "G2D": Contract(
        {"logits": 0.0, "features": 0.0, "last_epoch": 0},
        {"epochs": 1, "last_epoch": 1},
        refuses={"regression": "Expected an output layer of two or more classes"},
        # equal as long as the same teacher leads in the window so far, as it does here
    ),
    "GradientBlending": Contract(
        {"weights": {"fused": 1.0}}, {"mode": "online", "epochs": 1, "every": 2}
    ),
    "Greedy": Contract(
        {"epsilon": None},
        {"epsilon": 0.0, "steps": 1, "first_epoch": 1},
        refuses={"segmentation": "Expected `bypass`, the units by which"},
        gated=True,
    ),
    "GreedyFeatures": Contract({"epsilon": None}, {"epsilon": 0.0, "steps": 1, "first_epoch": 1}),
    "GuidedHeads": Contract(
        {"mu": 0.0, "nu": 0.0},
        named={"factors": {"text": 0.2, "audio": 0.6, "video": 0.9}},
        drawn=(),
        windows="each micro-batch draws",
        ranks="each rank draws",
    ),
    "MLA": Contract(
        {"turns": 0},
        rules={"classification": "entropy", "regression": "entropy", "segmentation": "entropy"},
        refuses={"regression": "Expected logits of two and more classes"},
        ordered="turns go by the encoders' order",
    ),
    "MMPareto": Contract({"weight": 0.0}),
    "ModalityDropout": Contract(
        {"p": 0.0},
        named={"p": {"text": 0.2, "audio": 0.6, "video": 0.9}},
        drawn=("term",),
        windows="each micro-batch draws",
        ranks="each rank draws",
    ),
    "ModalityLearningRates": Contract(
        {"strategy": "keep", "rates": 1.0},
        {"strategy": "dynamic", "window": 2},
        {"rates": {"text": 0.2, "audio": 0.6, "video": 1.4}},
    ),
    "OGM": Contract({"alpha": 0.0}, windows=_SO_FAR),
    "OPM": Contract(
        {"q_base": 0.0},
        {"warmup_epochs": 0, "p_exe": 1.0},
        drawn=(),
        windows="each micro-batch draws",
        ranks="each rank draws",
    ),
    "PASSION": Contract(
        {"unimodal": 0.0, "distill": 0.0, "prototypes": 0.0},
        task="segmentation",
        refuses={
            "classification": "Expected a convolutional output layer of two or more classes",
            "regression": "Expected a convolutional output layer of two or more classes",
        },
        windows=_SO_FAR,
    ),
    "PMR": Contract(
        {"alpha": 0.0, "mu": 0.0},
        refuses={
            "regression": "Expected a linear output layer of two or more classes",
            "segmentation": "Expected a linear output layer of two or more classes",
        },
        windows=_SO_FAR,
    ),
    "QMF": Contract(
        {"unimodal": 0.0, "lam": 0.0},
        rules={"classification": "energy", "regression": "energy", "segmentation": "energy"},
        refuses={"regression": "for regression"},
        windows="pairs of neighbors are those of a micro-batch",
        ranks="pairs of neighbors are those of a rank",
    ),
    "RandomFactors": Contract(
        {"terms": [1.0]},
        named={"terms": {"text": [0.1, 0.9], "audio": [0.3, 0.7], "video": [0.2, 0.6]}},
    ),
    "ReconBoost": Contract(
        {"epochs_per_stage": 0},
        {"epochs_per_stage": 1, "rectify_epochs": 1},
        rules={"classification": "sum", "regression": "sum", "segmentation": "sum"},
        ordered="turns go by the encoders' order",
    ),
    "RedCore": Contract({"weight": 0.0}, windows=_SO_FAR),
    "Relearning": Contract(
        {"strength": 0.0},
        {"every": 1, "times": 2},
        refuses={
            "regression": "Expected a linear output layer of two or more classes",
            "segmentation": "Expected a linear output layer of two or more classes",
        },
        ranks="the first rank's samples are diagnosed",
    ),
    "UnimodalEnsemble": Contract(
        {"joint": 1.0},
        rules={
            "classification": "probabilities",
            "regression": "mean",
            "segmentation": "probabilities",
        },
    ),
    "UnimodalLosses": Contract({"weight": 0.0}),
    "UnimodalTeacher": Contract({"weight": 0.0}, {"epochs": 1}),
}
