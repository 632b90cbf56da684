"""What numbers look like to people: charts for pages and picture files, tables of text, intervals.

A chart is described once, as data (``charts``); ``drawing`` draws it with matplotlib and
``pictures`` makes a PNG file of it, or an SVG picture in the colors of a page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
