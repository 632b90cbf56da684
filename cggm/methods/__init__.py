"""One file, one class, one paper each."""

from cggm.balancer import Balancer
from cggm.methods.agm import AGM
from cggm.methods.cggm import CGGM
from cggm.methods.constant import ConstantFactors
from cggm.methods.gblending import GradientBlending
from cggm.methods.greedy import Greedy
from cggm.methods.mmpareto import MMPareto
from cggm.methods.mrd import ModalityDropout
from cggm.methods.mslr import ModalityLearningRates
from cggm.methods.ogm import OGM
from cggm.methods.opm import OPM
from cggm.methods.pmr import PMR
from cggm.methods.qmf import QMF
from cggm.methods.random_factors import RandomFactors
from cggm.methods.reconboost import ReconBoost
from cggm.methods.ume import UnimodalEnsemble
from cggm.methods.umt import UnimodalTeacher
from cggm.methods.unimodal_losses import UnimodalLosses

__all__ = [
    "AGM",
    "CGGM",
    "OGM",
    "OPM",
    "PMR",
    "QMF",
    "Balancer",
    "ConstantFactors",
    "GradientBlending",
    "Greedy",
    "MMPareto",
    "ModalityDropout",
    "ModalityLearningRates",
    "RandomFactors",
    "ReconBoost",
    "UnimodalEnsemble",
    "UnimodalLosses",
    "UnimodalTeacher",
]
