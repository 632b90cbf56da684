"""Reports: a finished run, or a comparison, as one HTML file that needs nothing else.

``page`` assembles sections; ``charts``, ``points``, ``tables`` and ``cards`` draw what is in them;
``balance`` and ``reading`` show what a method saw and did, ``provenance`` what a run was. Tasks add
sections of their own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
