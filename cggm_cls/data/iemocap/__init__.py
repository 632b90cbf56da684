"""IEMOCAP: emotion of spoken utterances from text, audio and vision, in ten folds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
