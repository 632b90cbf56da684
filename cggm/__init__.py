"""Balanced multimodal training: classifier-guided gradient modulation and its rivals.

The names below are imported on first use, so that a command line can parse its arguments without
loading PyTorch.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
