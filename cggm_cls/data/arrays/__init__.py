"""Arrays of one's own: a folder with an array per modality, read as the data of a task.

A folder holds files of arrays or tables in six formats, or one archive for each split, and where
names do not say what is what, a ``dataset.yaml``. The array or column ``target`` is what is
predicted and every other array or table is a modality, rows of features ``(N, D)`` or padded
sequences ``(N, T, D)``, apart from these:

==================== ======================================================================
``<name>.lengths``   steps of each sequence of a modality, ``(N,)``; all T without it
``<name>.mask``      which steps are real, ``(N, T)``, or which samples have it, ``(N,)``
``id``               identifier of each sample, ``(N,)``
``split``            ``train``, ``valid`` or ``test``, ``(N,)``; drawn where there is none
``group``            such as a patient, whose samples stay in one split, ``(N,)``
==================== ======================================================================

Targets that are floating-point numbers make it a regression; integers, booleans and texts are
classes, unless they could be either.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
