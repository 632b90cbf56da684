"""Arrays of one's own: a folder with an array per modality, read as the data of a task.

A folder holds either three archives, ``train.npz``, ``valid.npz`` and ``test.npz``, or one file per
array, ``<name>.npy``. In both the array ``target`` is what is predicted and every other array is a
modality, rows of features ``(N, D)`` or padded sequences ``(N, T, D)``, apart from these:

==================== ======================================================================
``<name>.lengths``   steps of each sequence of a modality, ``(N,)``; all T without it
``id``               identifier of each sample, ``(N,)``
``split``            ``train``, ``valid`` or ``test``, ``(N,)``; drawn where there is none
``group``            such as a patient, whose samples stay in one split, ``(N,)``
==================== ======================================================================

Targets that are floating-point numbers make it a regression; integers, booleans and texts are
classes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
