"""One file, one class, one paper each."""

from cggm.balancer import Balancer
from cggm.methods.cggm import CGGM

__all__ = ["CGGM", "Balancer"]
