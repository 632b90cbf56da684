"""Parts that several methods need, or that one of them needs apart from its equation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
