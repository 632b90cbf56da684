"""Checks the direction loss's gradient against double backward and finite differences."""

import torch
from torch import nn
from torch.testing import assert_close

from cggm.functional import direction_loss, last_layer_gradient

TERMS = torch.tensor([0.7, 1.1], dtype=torch.float64)


class Problem(nn.Module):
    """A last layer and what follows it, under one loss."""

    def __init__(self, loss, dims, upsample=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 1).double() if dims else nn.Linear(3, 4).double()
        shape = (2, 3, 4, 4) if dims else (6, 3)
        self.u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        self.heads = torch.randn(2, 4, 3, dtype=torch.float64)
        self.loss_function, self.upsample, self.dims = loss, upsample, dims
        spatial = (8, 8) if upsample else (4, 4)
        self.target = torch.randint(0, 4, (2, *spatial) if dims else (6,))
        if isinstance(loss, nn.L1Loss):
            self.target = torch.randn(6, 4, dtype=torch.float64)

    def task(self, u):
        z = self.layer(u)
        out = nn.functional.interpolate(z, scale_factor=2, mode="bilinear") if self.upsample else z
        return z, self.loss_function(out, self.target)

    def ours(self, u):
        z, loss = self.task(u)
        fused = last_layer_gradient(loss, u, z, channels_last=not self.dims)
        return fused, direction_loss(fused, self.heads, TERMS)

    def double_backward(self, u):
        _, loss = self.task(u)
        (gradient,) = torch.autograd.grad(loss, self.layer.weight, create_graph=True)
        fused = gradient.flatten(1)
        return fused, direction_loss(fused, self.heads, TERMS)


def check_direction_loss(problem: Problem) -> None:
    """Last-layer gradient and direction loss agree with autograd and finite differences."""
    (ours, loss), (expected, other) = problem.ours(problem.u), problem.double_backward(problem.u)
    assert_close(ours, expected)
    inputs = (problem.u, problem.layer.weight)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    for a, b in zip(found, torch.autograd.grad(other, inputs, allow_unused=True), strict=True):
        assert_close(a, b)
    assert torch.autograd.gradcheck(lambda u: problem.ours(u)[1], (problem.u,), atol=1e-6)
