"""Balanced training in nnU-Net (v2): trainers, their network, and the command ``nnunet``.

nnU-Net plans, augments, trains on several GPUs, cross-validates, ensembles and predicts. This
package brings what it lacks: a network with an encoder for each channel, and a balancing method in
place of the loss. ``nnUNet_extTrainer`` names the folder ``trainers``, where nnU-Net finds them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
