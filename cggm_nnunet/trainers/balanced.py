"""Trainers that nnU-Net finds by their names in this folder, which ``nnUNet_extTrainer`` names."""

from cggm_nnunet.trainer import (
    nnUNetTrainerCGGM,
    nnUNetTrainerJoint,
    nnUNetTrainerMRD,
    nnUNetTrainerMRDUnimodalLosses,
    nnUNetTrainerUnimodalLosses,
)

__all__ = [
    "nnUNetTrainerCGGM",
    "nnUNetTrainerJoint",
    "nnUNetTrainerMRD",
    "nnUNetTrainerMRDUnimodalLosses",
    "nnUNetTrainerUnimodalLosses",
]
