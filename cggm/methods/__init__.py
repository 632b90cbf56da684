"""One file, one class, one paper each."""

from cggm.balancer import Balancer
from cggm.methods.cggm import CGGM
from cggm.methods.constant import ConstantFactors
from cggm.methods.mslr import ModalityLearningRates
from cggm.methods.ogm import OGM
from cggm.methods.pmr import PMR
from cggm.methods.random_factors import RandomFactors
from cggm.methods.unimodal_losses import UnimodalLosses

__all__ = [
    "CGGM",
    "OGM",
    "PMR",
    "Balancer",
    "ConstantFactors",
    "ModalityLearningRates",
    "RandomFactors",
    "UnimodalLosses",
]
