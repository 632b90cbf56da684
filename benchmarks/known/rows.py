"""Rows of the benchmark: every method of ``cggm.methods`` with its settings, and matched controls.

A method that nothing is said of here has one row, with its defaults, under its class's name.
"""

from benchmarks.known.training import Replay, Row
from cggm.methods import published_methods

PAPER = {"rho": 1.0, "gate": None}
# Joint training, CGGM in its forms, and the controls of two of them.
CORE = {
    "joint": Row("Balancer"),
    "unimodal losses": Row("UnimodalLosses"),
    "CGGM": Row("CGGM"),
    "magnitude": Row("CGGM", {"direction": None}),
    "direction": Row("CGGM", {"rho": None}),
    "constant": Row("ConstantFactors", replays=Replay(Row("CGGM"))),
    "random": Row("RandomFactors", replays=Replay(Row("CGGM"), drawn=True, argument="terms")),
    "update": Row("CGGM", {"acts_on": "update"}),
    "rho 1": Row("CGGM", {"rho": 1.0}),
    "ungated": Row("CGGM", {"gate": None}),
    "ungated rho 1": Row("CGGM", PAPER),
    "ungated rho 1 magnitude": Row("CGGM", PAPER | {"direction": None}),
    "ungated rho 1 direction": Row("CGGM", PAPER | {"rho": None}),
    "ungated rho 1 constant": Row("ConstantFactors", replays=Replay(Row("CGGM", PAPER))),
    "ungated rho 1 random": Row(
        "RandomFactors", replays=Replay(Row("CGGM", PAPER), drawn=True, argument="terms")
    ),
    "paper": Row("CGGM", PAPER | {"gain": "batch", "terms": "raw"}),
}
# By method, its rows where it has others than one with its defaults. What follows the length of a
# training is a share of the epochs here, as published.
ROWS = {
    "ModalityDropout": {
        "MRD": Row("ModalityDropout"),
        "MRD uniform": Row("ModalityDropout", {"subsets": "uniform"}),
    },
    "ModalityLearningRates": {
        "MSLR dynamic": Row("ModalityLearningRates", {"strategy": "dynamic", "rates": 1.0}),
    },
    "GradientBlending": {
        "G-Blending": Row("GradientBlending", {"mode": "offline", "epochs": 5}),
    },
    "GreedyFeatures": {"Greedy on features": Row("GreedyFeatures")},
    "OGM": {
        "OGM": Row("OGM"),
        "OGM continuous": Row("OGM", {"continuous": True}),
        "OGM-GE": Row("OGM", {"noise": True}),
    },
    "UnimodalTeacher": {"UMT": Row("UnimodalTeacher")},
    "G2D": {"G2D": Row("G2D", of_epochs={"last_epoch": 1 / 2})},
    "Relearning": {"Relearning": Row("Relearning", of_epochs={"every": 20 / 90})},
    "OPM": {"OPM": Row("OPM", {"warmup_epochs": 2})},
    "UnimodalEnsemble": {
        "late joint": Row("UnimodalEnsemble", {"joint": 1.0}, "average"),
        "UME": Row("UnimodalEnsemble", rule="average"),
    },
    "QMF": {"QMF": Row("QMF", rule="energy")},
    "ReconBoost": {
        "ReconBoost": Row("ReconBoost", {"epochs_per_stage": 2, "rectify_epochs": 2}, "sum"),
    },
    "MLA": {"MLA": Row("MLA", rule="entropy")},
    "GuidedHeads": {"guided": Row("GuidedHeads")},
}
# Methods without a row, and why.
LEFT_OUT = {
    "Greedy": "the networks here have no units by which modalities modulate each other",
}
UNIFORM = {"ModalityDropout": {"subsets": "uniform"}}
CHAINS = {
    "MRD uniform + unimodal losses": Row("ModalityDropout+UnimodalLosses", UNIFORM),
    "MRD uniform + guided": Row("ModalityDropout+GuidedHeads", UNIFORM),
    "MRD uniform + CGGM": Row("ModalityDropout+CGGM", UNIFORM),
}


def _rivals() -> dict[str, Row]:
    told = {row.method for row in CORE.values()} | {*LEFT_OUT}
    others = [name for name in published_methods() if name not in told]
    return {k: row for name in others for k, row in ROWS.get(name, {name: Row(name)}).items()}


RIVALS = _rivals() | CHAINS


def _controls() -> dict[str, Row]:
    """Of rivals whose weights another class can take.

    Factors go to the encoders, where AGM has them on responses. Weights of heads' losses go to
    guided heads without all that is theirs, of PMR those of its prototypes' losses. What OPM drops,
    modality dropout drops as often on average. G2D's teachers and PASSION's teaching, which are
    most of them, have no control.
    """
    found = {}
    for label in ("OGM", "OGM continuous", "AGM", "MSLR dynamic", "G2D"):
        acts = {"acts_on": "update" if label == "MSLR dynamic" else "gradient"}
        drawn = Replay(RIVALS[label], drawn=True, argument="terms")
        found[f"{label}: constant"] = Row("ConstantFactors", acts, replays=Replay(RIVALS[label]))
        shuffled = Row("RandomFactors", acts | {"permuted": True}, replays=drawn)
        found[f"{label}: shuffled"] = shuffled
    plain = {"nu": 0.0, "shares": None}
    for label, reading in (("RedCore", "weight"), ("G-Blending", "term"), ("PMR", "weight")):
        for name, drawn in (("constant", False), ("random", True)):
            replay = Replay(RIVALS[label], reading, drawn=drawn)
            found[f"{label}: {name}"] = Row("GuidedHeads", plain, replays=replay)
    drops = Replay(RIVALS["OPM"], argument="p", complement=True)
    return found | {"OPM: constant": Row("ModalityDropout", replays=drops)}


CONTROLS = _controls()
METHODS = CORE | RIVALS | CONTROLS
