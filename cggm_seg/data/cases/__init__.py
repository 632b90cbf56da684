"""Cases: which files of a folder, or of a table, belong to which examination."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
