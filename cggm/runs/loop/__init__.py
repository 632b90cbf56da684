"""What acts on a training while it runs: order of samples, schedule, guards, signals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
