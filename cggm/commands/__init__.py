"""Commands: the project's scripts under one name, such as ``cggm brats train``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
