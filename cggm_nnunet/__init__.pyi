from .command import main as main
from .network import ModalityUNet as ModalityUNet
from .network import build_network as build_network
from .trainer import nnUNetTrainerCGGM as nnUNetTrainerCGGM
from .trainer import nnUNetTrainerJoint as nnUNetTrainerJoint
from .trainer import nnUNetTrainerMRD as nnUNetTrainerMRD
from .trainer import nnUNetTrainerUnimodalLosses as nnUNetTrainerUnimodalLosses
