"""Methods of balanced training: one file, one class, one paper each, found by their names.

``from cggm.methods import OGM`` imports the class of that name from whichever module holds it.
"""

from typing import Any

import lazy_loader

_face, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name[0].isupper():
        method = _face("published_methods")().get(name)
        if method is not None:
            return method
    return _face(name)


def __dir__() -> list[str]:
    return [*__all__, *_face("method_names")()]
