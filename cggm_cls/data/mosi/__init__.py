"""CMU-MOSI and CMU-MOSEI: sentiment of spoken sentences from text, audio and vision."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
