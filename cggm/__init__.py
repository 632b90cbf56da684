"""Balanced multimodal training: classifier-guided gradient modulation and its rivals.

The names below are imported on first use, so that a command line can parse its arguments without
loading PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cggm.balancer import Balancer, Step
    from cggm.handlers import BalanceHandler, BalanceRecorder
    from cggm.methods.cggm import CGGM

__all__ = ["CGGM", "BalanceHandler", "BalanceRecorder", "Balancer", "Step"]

_HOMES = {
    "CGGM": "cggm.methods.cggm",
    "BalanceHandler": "cggm.handlers",
    "BalanceRecorder": "cggm.handlers",
    "Balancer": "cggm.balancer",
    "Step": "cggm.balancer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'cggm' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value
