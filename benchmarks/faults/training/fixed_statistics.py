"""BatchNorm whose statistics stay as they are, so that a batch in parts is treated as a whole."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@torch.no_grad()
def fix_statistics(module: nn.Module, inputs: Any) -> None:  # noqa: ANN401
    """Let BatchNorm take the statistics of these inputs, once and for all."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]
    for norm in norms:
        norm.momentum = 1.0
    module(inputs)
    for norm in norms:
        norm.eval()
        norm.train = partial(_as_it_is, norm)  # type: ignore[assignment, method-assign]


def _as_it_is(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
