"""Networks for sequences: a transformer per modality and a fusing transformer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
