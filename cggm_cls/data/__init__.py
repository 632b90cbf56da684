"""Sequences per modality, from files to batches, and a package or module for each data set.

A data set is imported by its own name, as in ``from cggm_cls.data.mosi import load_mosi``; what all
of them share is here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
