"""Order of samples, schedule, guards and signals: all that acts on a training while it runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
