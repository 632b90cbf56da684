import typing

from ._parts import Chain as Chain
from .registry import bound_balancer as bound_balancer
from .registry import build_balancer as build_balancer
from .registry import find_method as find_method
from .registry import method_names as method_names
from .registry import published_methods as published_methods

def __getattr__(name: str) -> typing.Any: ...  # noqa: ANN401
